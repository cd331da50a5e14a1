"""What a run begins with: a teacher, weights of another model, its whole state."""

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
from jcm.model import model
from jcm.networks import Network, Params
from jcm.pretrained import checkpoint
from jcm.run import storage
from jcm.run import workdir as workdir_lib
from jcm.run.checkpoints import Checkpoints
from jcm.run.state import State
from jcm.runtime.errors import JcmError


def teacher_config(config: ConfigDict) -> ConfigDict:
    """The config that a student's `teacher` names, fitted to the student.

    Data, noise levels, network (but for its dropout), mesh, evaluation and seed are the
    student's.
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
    """The weights to distil: loaded, or trained first in WORKDIR/teacher.

    Args:
      config: of the student.
      workdir: of the student.
      network: of the student.
      train: trains a config in a workdir.

    Raises:
      JcmError: where no teacher is named, or it has another network.
    """
    source = config.teacher
    if not source:
        raise JcmError(
            f"config.method={config.method!r} needs a teacher: set --config.teacher to"
            " the workdir or file of a diffusion model, a published name such as"
            " openai/edm-cifar10, or a config to train first"
        )
    if config_lib.is_file(source):
        source = workdir_lib.teacher_place(config, workdir)
        logging.info("training the teacher, %s, in %s", config.teacher, source)
        train(teacher_config(config), source)
    teacher = _load("config.teacher", source)
    if teacher.kind != "edm":
        raise JcmError(
            f"config.teacher={source} is no diffusion model: name another, or convert a"
            " file that is one by python -m jcm.commands.convert FILE FOLDER --kind=edm"
        )
    _refuse_other_network("config.teacher", source, teacher, network)
    model.refuse_other_noise(f"config.teacher={source}", teacher, config)
    return teacher.params


def first_state(
    config: ConfigDict,
    network: Network,
    new_state: Callable[[Params], State],
    template: State,
    weights: Params,
) -> State:
    """The state before the first step of this run.

    Args:
      config: `init.model` names a model whose weights replace those given; with
        `init.state`, its whole training goes on.
      network: of the run.
      new_state: makes a state of weights.
      template: shapes, types and placement of the state.
      weights: to begin with where the config names none.

    Raises:
      JcmError: where the model has another network, or no state to go on from.
    """
    source = config.init.model
    shardings = jax.tree.map(lambda leaf: leaf.sharding, template)
    if source and config.init.state:
        state = _continued(config, network, template)
        if state.step >= config.train.num_steps:
            raise JcmError(
                f"config.init.model={source} has done {state.step} steps: raise"
                f" config.train.num_steps={config.train.num_steps}"
            )
        logging.info("going on from step %d of %s", state.step, source)
        # Copies: buffers that are given away at each step must not be shared.
        copy = functools.partial(jax.tree.map, jnp.copy)
        return jax.jit(copy, out_shardings=shardings)(state)
    if source:
        found = _load("config.init.model", source)
        _refuse_other_network("config.init.model", source, found, network)
        model.refuse_other_noise(f"config.init.model={source}", found, config)
        logging.info("beginning with the weights of %s", source)
        weights = found.params
    return jax.jit(new_state, out_shardings=shardings)(weights)


def _continued(config: ConfigDict, network: Network, template: State) -> State:
    """The state that another training has reached: a workdir, or a file."""
    source = config.init.model
    if (storage.local_folder(source) / "run.json").exists():
        _refuse_other_training(source, config)
        with Checkpoints(source) as checkpoints:
            parts = {
                field: checkpoints.restore_part(field, part)
                for field in vars(template)
                if field != "step" and (part := getattr(template, field)) is not None
            }
            step = checkpoints.latest_step
        return dataclasses.replace(template, step=jnp.int32(step), **parts)
    found = checkpoint.read_training(source, network)
    target = None
    if template.target_params is not None:
        # Where there is none it was the student itself.
        target = found.target_params or found.params
    return State(
        step=jnp.int32(found.step),
        params=found.params,
        target_params=target,
        # The original knows one rate.
        ema_params=dict.fromkeys(template.ema_params, found.ema_params),
        opt_state=optax.tree.set(template.opt_state, **found.moments),
    )


def _load(field: str, source: str) -> model.Model:
    try:
        return model.load(source)
    except JcmError as error:
        raise JcmError(f"{field}: {error}") from error


# What a state has by: other settings of the same names may follow.
_STATE = ("method", "model", "noise", "optim", "train.ema_rates")
_NOT_STATE = ("model.dropout", "model.dtype", "model.remat", "optim.learning_rate")


def _refuse_other_training(source: str, config: ConfigDict) -> None:
    """Makes sure that a run's state can be that of this config."""
    theirs = workdir_lib.flatten(workdir_lib.read(source).config.to_dict())
    for name, ours in workdir_lib.flatten(config.to_dict()).items():
        counts = any(name == part or name.startswith(f"{part}.") for part in _STATE)
        if counts and name not in _NOT_STATE and theirs.get(name) != ours:
            raise JcmError(
                f"config.init.model={source} was trained with config.{name}="
                f"{theirs.get(name)!r}, and not {ours!r}: use the same, or begin anew"
                " from the weights, with config.init.state=False"
            )


def _refuse_other_network(
    field: str, source: str, found: model.Model, network: Network
) -> None:
    """Compares all that changes what a network computes."""
    theirs = found.denoiser.network.arch
    if type(theirs) is not type(network.arch):
        raise JcmError(
            f"{field}={source} is another network than config.model.name: use the"
            " model's"
        )
    for name in (each.name for each in dataclasses.fields(theirs)):
        a, b = getattr(network.arch, name), getattr(theirs, name)
        if a != b and name not in ("dropout", "dtype", "remat"):
            raise JcmError(
                f"{field}={source} has another network, with {name}={b} and not {a}:"
                " use its settings"
            )
