"""What a run starts from: teachers, the weights of a model, or a whole training."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import logging
from ml_collections import ConfigDict

from jcm import config as config_lib
from jcm import methods
from jcm.config.tables import TEACHER_SECTIONS
from jcm.diffusion.denoiser import Denoiser
from jcm.model import build, loading
from jcm.model.model import Model
from jcm.networks import Network, Params
from jcm.pretrained import openai_training
from jcm.run import storage
from jcm.run import workdir as workdir_lib
from jcm.run.checkpoints import Checkpoints
from jcm.run.state import State
from jcm.runtime.errors import JcmError

# The fields that decide the shapes and the meaning of a state, and those among them
# that may change when a training continues.
_STATE = ("method", "model", "noise", "optim", "train.averages")
_NOT_STATE = (
    "model.dropout",
    "model.dtype",
    "model.remat",
    "optim.learning_rate",
    "optim.warmup_kimg",
    "optim.schedule",
    "optim.decay_kimg",
)
# The fields of an architecture that do not change what the network computes.
_NOT_NETWORK = ("dropout", "dtype", "remat")


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A model that the loss of a run reads, known before its weights are needed.

    Attributes:
      denoiser: D or f.
      load: returns the weights; trains the teacher first where a config names it.
      config: the config to train it with; None if it exists already.
    """

    denoiser: Denoiser
    load: Callable[[], Params]
    config: ConfigDict | None = None


def find_teachers(
    config: ConfigDict,
    num_classes: int,
    workdir: str | os.PathLike = "",
    train: Callable[[ConfigDict, str | os.PathLike], Any] | None = None,
) -> dict[str, Teacher]:
    """Finds the teachers of a config by name; models that exist are read at once.

    Args:
      config: the config of the student.
      num_classes: number of classes in the data.
      workdir: the workdir of the student.
      train: trains a config in a workdir; None if no teacher is trained here.

    Raises:
      JcmError: if no teacher is named, if it is of another kind than the method needs,
        or if it does not fit the student.
    """
    recipe = methods.recipe(config.method)
    found = {}
    for name, kind in recipe.teachers.items():
        field, source = f"config.teachers.{name}", config.teachers[name]
        if not source:
            raise JcmError(
                f"config.method={config.method!r} needs a teacher: set {field} to the"
                f" workdir or file of a {kind} model, a published name such as"
                " openai/edm-cifar10, or a config to train first"
            )
        if config_lib.is_file(source):
            theirs = teacher_config(config, name)
            network = build.network(theirs, num_classes)
            denoiser = methods.denoiser(theirs, network)
            load = functools.partial(_train_and_load, config, name, workdir, train)
        else:
            model = _load(field, source)
            theirs, denoiser = model.config, model.denoiser
            load = functools.partial(getattr, model, "params")
        if denoiser.kind != kind:
            raise JcmError(
                f"{field}={source} is a {denoiser.kind} model, and not a {kind} model:"
                f" name another, or, if a file does hold a {kind} model, convert it"
                f" first with jcm convert --kind={kind}"
            )
        if name == recipe.begins_with:
            student = build.network(config, num_classes)
            _check_same_network(f"{field}={source}", denoiser, student)
            loading.check_same_noise(f"{field}={source}", theirs, config)
        else:
            _check_covers(f"{field}={source}", theirs, config)
        is_new = config_lib.is_file(source)
        found[name] = Teacher(denoiser, load, theirs if is_new else None)
    return found


def teacher_config(config: ConfigDict, name: str) -> ConfigDict:
    """Returns the config that `config.teachers` names, adapted to the student.

    The data, noise levels, mesh, evaluation and seed are those of the student. If the
    student begins with the weights of the teacher, so is the network, except for its
    dropout. Everything else is taken from the config of the teacher, except for the
    fields of `config.teacher_train` that are not None.
    """
    found = config_lib.load(config.teachers[name])
    begins = methods.recipe(config.method).begins_with == name
    with found.unlocked():
        dropout = found.model.dropout
        sections = ("data", "noise", "mesh", "eval", *(["model"] if begins else []))
        for field in sections:
            found[field] = config[field].copy_and_resolve_references()
        found.model.dropout = dropout
        found.seed = config.seed
        for field, section in TEACHER_SECTIONS.items():
            value = config.teacher_train[field]
            if value is not None:
                found[section][field] = value
    return found


def check_init(config: ConfigDict) -> None:
    """Checks that `config.init.model` exists, long before its weights are needed.

    Raises:
      JcmError: if not.
    """
    if config.init.model:
        try:
            loading.check_is_model(storage.local_folder(config.init.model))
        except JcmError as error:
            raise JcmError(f"config.init.model: {error}") from error


def length(config: ConfigDict) -> str:
    """Returns how long a config trains, in words."""
    steps, batch_size = config.train.num_steps, config.train.batch_size
    kimg = steps * batch_size / 1000
    written = f"{kimg:.3g}" if kimg < 1000 else f"{kimg:,.0f}"
    return f"{steps:,} steps of {batch_size:,} images ({written} kimg)"


def _train_and_load(
    config: ConfigDict,
    name: str,
    workdir: str | os.PathLike,
    train: Callable[[ConfigDict, str | os.PathLike], Any] | None,
) -> Params:
    """Trains a teacher in WORKDIR/teachers/NAME, and returns its weights."""
    if train is None:
        raise JcmError(
            f"config.teachers.{name}={config.teachers[name]} is not trained here: train"
            " it first, and name its workdir"
        )
    source = workdir_lib.teacher_paths(config, workdir)[name]
    theirs = teacher_config(config, name)
    if workdir_lib.newest_step(source) < theirs.train.num_steps:
        logging.info(
            "the teacher %s is trained first, for %s, in %s; then the student, for %s."
            " The fields of config.teacher_train change the training of the teacher",
            *(config.teachers[name], length(theirs), source, length(config)),
        )
    train(theirs, source)
    return _load(f"config.teachers.{name}", source).params


def first_state(
    config: ConfigDict,
    network: Network,
    new_state: Callable[[Params], State],
    template: State,
    weights: Params,
) -> State:
    """Returns the state before the first step of this run.

    Args:
      config: `init.model` names a model whose weights replace `weights`; with
        `init.state`, the run continues its whole training.
      network: the network of the run.
      new_state: makes a state from weights.
      template: shapes, types and placement of the state.
      weights: the first weights if the config names none.

    Raises:
      JcmError: if the model has another network, or no state to continue from.
    """
    source = config.init.model
    shardings = jax.tree.map(lambda leaf: leaf.sharding, template)
    if source and config.init.state:
        state = _state_of(config, network, template)
        if state.step >= config.train.num_steps:
            raise JcmError(
                f"config.init.model={source} has done {state.step} steps: raise"
                f" config.train.num_steps={config.train.num_steps}"
            )
        logging.info("continuing from step %d of %s", state.step, source)
        # The step donates its buffers, so the state must not share any: copy them.
        copy = functools.partial(jax.tree.map, jnp.copy)
        return jax.jit(copy, out_shardings=shardings)(state)
    if source:
        found = _load("config.init.model", source)
        where = f"config.init.model={source}"
        _check_same_network(where, found.denoiser, network)
        loading.check_same_noise(where, found.config, config)
        logging.info("starting from the weights of %s", source)
        weights = found.params
    return jax.jit(new_state, out_shardings=shardings)(weights)


def _state_of(config: ConfigDict, network: Network, template: State) -> State:
    """Returns the state that another training reached: a workdir's, or a file's."""
    source = config.init.model
    if (storage.local_folder(source) / "run.json").exists():
        _check_same_training(source, config)
        with Checkpoints(source) as checkpoints:
            parts = {
                field: checkpoints.restore_part(field, part)
                for field in vars(template)
                if field != "step" and (part := getattr(template, field)) is not None
            }
            step = checkpoints.latest_step
        return dataclasses.replace(template, step=jnp.int32(step), **parts)
    found = openai_training.read(source, network)
    target = None
    if template.target_params is not None:
        # A file without a target was trained with the student as its own target.
        target = found.target_params or found.params
    return State(
        step=jnp.int32(found.step),
        params=found.params,
        target_params=target,
        # The original code keeps one average, which starts those of every rate.
        ema_params=dict.fromkeys(template.ema_params, found.ema_params),
        opt_state=optax.tree.set(template.opt_state, **found.moments),
    )


def _load(field: str, source: str) -> Model:
    try:
        return loading.load(source)
    except JcmError as error:
        raise JcmError(f"{field}: {error}") from error


def _check_same_training(source: str, config: ConfigDict) -> None:
    """Checks that the state of a run can be that of this config."""
    theirs = workdir_lib.read(source).config
    for name, before, now in config_lib.differences(
        theirs, config, only=_STATE, ignore=_NOT_STATE
    ):
        raise JcmError(
            f"config.init.model={source} was trained with config.{name}={before!r}, and"
            f" not {now!r}: use the same, or start from the weights alone, with"
            " config.init.state=False"
        )


def _check_same_network(where: str, denoiser: Denoiser, network: Network) -> None:
    """Checks that a model has the network of the run.

    Args:
      where: the field and the model, for the error.
      denoiser: of the model.
      network: of the run.

    Raises:
      JcmError: if it has another one.
    """
    ours, theirs = network.arch, denoiser.network.arch
    if type(theirs) is not type(ours):
        raise JcmError(
            f"{where} is another network than config.model.name: use the model's"
        )
    for name in (each.name for each in dataclasses.fields(theirs)):
        a, b = getattr(ours, name), getattr(theirs, name)
        if a != b and name not in _NOT_NETWORK:
            raise JcmError(
                f"{where} has another network, with {name}={b} and not {a}: use its"
                " settings"
            )


def _check_covers(where: str, theirs: ConfigDict, ours: ConfigDict) -> None:
    """Checks that a model knows all noise levels and the images of the run.

    Raises:
      JcmError: if it does not.
    """
    if (
        theirs.noise.sigma_min > ours.noise.sigma_min
        or theirs.noise.sigma_max < ours.noise.sigma_max
    ):
        raise JcmError(
            f"{where} knows the noise levels {theirs.noise.sigma_min} to"
            f" {theirs.noise.sigma_max}, and not {ours.noise.sigma_min} to"
            f" {ours.noise.sigma_max}: set config.noise"
        )
    for field in ("image_size", "channels"):
        if theirs.data[field] != ours.data[field]:
            raise JcmError(
                f"{where} makes images with {field}={theirs.data[field]}, and not"
                f" {ours.data[field]}: use another teacher"
            )
