"""What a run starts from: a teacher, the weights of a model, or a whole training."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import logging
from ml_collections import ConfigDict

from jcm import config as config_lib
from jcm.model import loading
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
_STATE = ("method", "model", "noise", "optim", "train.ema_rates")
_NOT_STATE = ("model.dropout", "model.dtype", "model.remat", "optim.learning_rate")
# The fields of an architecture that do not change what the network computes.
_NOT_NETWORK = ("dropout", "dtype", "remat")


def teacher_config(config: ConfigDict) -> ConfigDict:
    """Returns the config that `config.teacher` names, adapted to the student.

    The data, noise levels, network (except its dropout), mesh, evaluation and seed are
    those of the student.
    """
    found = config_lib.load(config.teacher)
    with found.unlocked():
        dropout = found.model.dropout
        for field in ("data", "noise", "model", "mesh", "eval"):
            found[field] = config[field].copy_and_resolve_references()
        found.model.dropout = dropout
        found.seed = config.seed
    return found


def teacher_weights(
    config: ConfigDict,
    workdir: pathlib.Path,
    network: Network,
    train: Callable[[ConfigDict, str | os.PathLike], Any],
) -> Params:
    """Returns the weights to distil: loaded, or trained first in WORKDIR/teacher.

    Args:
      config: the config of the student.
      workdir: the workdir of the student.
      network: the network of the student.
      train: trains a config in a workdir.

    Raises:
      JcmError: if no teacher is named, or it is not a diffusion model with the
        student's network and noise levels.
    """
    source = config.teacher
    if not source:
        raise JcmError(
            f"config.method={config.method!r} needs a teacher: set --config.teacher to"
            " the workdir or file of a diffusion model, a published name such as"
            " openai/edm-cifar10, or a config to train first"
        )
    if config_lib.is_file(source):
        source = workdir_lib.teacher_path(config, workdir)
        logging.info("training the teacher, %s, in %s", config.teacher, source)
        train(teacher_config(config), source)
    teacher = _load("config.teacher", source)
    if teacher.kind != "edm":
        raise JcmError(
            f"config.teacher={source} is not a diffusion model: name another, or"
            " convert a file that is one with python -m jcm.commands.convert FILE"
            " FOLDER --kind=edm"
        )
    _check_fits("config.teacher", source, teacher, network, config)
    return teacher.params


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
        _check_fits("config.init.model", source, found, network, config)
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


def _check_fits(
    field: str, source: str, found: Model, network: Network, config: ConfigDict
) -> None:
    """Checks that a model has the network and the noise levels of the run."""
    ours, theirs = network.arch, found.denoiser.network.arch
    if type(theirs) is not type(ours):
        raise JcmError(
            f"{field}={source} is another network than config.model.name: use the"
            " model's"
        )
    for name in (each.name for each in dataclasses.fields(theirs)):
        a, b = getattr(ours, name), getattr(theirs, name)
        if a != b and name not in _NOT_NETWORK:
            raise JcmError(
                f"{field}={source} has another network, with {name}={b} and not {a}:"
                " use its settings"
            )
    loading.check_same_noise(f"{field}={source}", found, config)
