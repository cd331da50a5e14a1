"""The training step of a config with its shapes, before anything is allocated."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from jcm import methods
from jcm.diffusion.denoiser import Denoiser
from jcm.methods import Frozen, Method
from jcm.model import build
from jcm.networks import Network, Params
from jcm.run import state as state_lib
from jcm.run.state import State
from jcm.runtime import sharding
from jcm.runtime.errors import JcmError
from jcm.training import averages, optim
from jcm.training.step import Rules, TrainStep, make_train_step, trace_step

# Folded into the key of the first parameters for those of a head.
_HEAD = 1


@dataclasses.dataclass(frozen=True)
class Program:
    """A training step, and the shapes and placement of what it works on.

    Attributes:
      network: F.
      method: gives the loss and the denoiser.
      teachers: the denoiser of each teacher of the method.
      mesh: the devices.
      init_key: the key of random first parameters.
      new_state: makes the state before the first step from parameters of the network.
      state: the shapes of the state.
      frozen: the shapes of what does not change during the run.
      batch: the shapes of a global batch.
      step: (state, frozen, batch) -> (state, metrics).
    """

    network: Network
    method: Method
    teachers: Mapping[str, Denoiser]
    mesh: jax.sharding.Mesh
    init_key: Key[Array, ""]
    new_state: Callable[[Params], State]
    state: State
    frozen: Frozen
    batch: dict[str, jax.ShapeDtypeStruct]
    step: TrainStep

    @property
    def batch_sharding(self) -> jax.sharding.NamedSharding:
        """How a global batch is spread over the devices."""
        return sharding.batch(self.mesh)

    @functools.cached_property
    def traced(self) -> jax.stages.Traced:
        """The traced step, to be compiled by `compile_step`."""
        return trace_step(self.step, self.state, self.frozen, self.batch)


def create(
    config: ConfigDict,
    num_classes: int,
    teachers: Mapping[str, Denoiser],
    devices: Sequence[jax.Device] | None = None,
) -> Program:
    """Builds the training step of a config.

    Args:
      config: the whole config.
      num_classes: the number of classes in the data.
      teachers: the denoiser of each teacher of the method.
      devices: the devices to train on; None for all.

    Raises:
      JcmError: for settings that do not fit together or do not fit the devices.
    """
    mesh = sharding.make_mesh(config.mesh.fsdp, devices)
    check_batch_size(config, mesh.size)
    network = build.network(config, num_classes)
    method = methods.create(config, network, teachers)
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    rules = _rules(config, step_key)

    def new_state(params: Params) -> State:
        return state_lib.create(
            params,
            method.init_head(jax.random.fold_in(init_key, _HEAD)),
            rules.optimizer,
            keeps_target=method.keeps_target,
            averages=config.train.averages,
        )

    platform = mesh.devices.flat[0].platform
    step = make_train_step(method, rules, platform=platform)
    split = sharding.Rules.of(config.mesh)
    place = functools.partial(sharding.shard_tree, mesh, rules=split)
    state = sharding.with_placement(jax.eval_shape(new_state, network.shapes), place)
    sharding.check_rules_match(state, split)
    frozen = Frozen(
        teachers={name: each.network.shapes for name, each in teachers.items()},
        constants=jax.eval_shape(lambda: method.constants),
    )
    return Program(
        network=network,
        method=method,
        teachers=teachers,
        mesh=mesh,
        init_key=init_key,
        new_state=new_state,
        state=state,
        frozen=sharding.with_placement(frozen, place),
        batch=_batch_shapes(config, sharding.batch(mesh)),
        step=step,
    )


def _rules(config: ConfigDict, seed_key: Key[Array, ""]) -> Rules:
    """Returns how a step of a config changes the state.

    Raises:
      JcmError: for an unknown optimiser, schedule or average.
    """
    train, optimiser = config.train, config.optim
    return Rules(
        optimizer=optim.create(optimiser),
        learning_rate=optim.learning_rate(optimiser, train.batch_size, train.num_steps),
        averages={spec: averages.parse(spec) for spec in train.averages},
        batch_size=train.batch_size,
        seed_key=seed_key,
        accumulate=train.accumulate,
        zero_nonfinite=optimiser.zero_nonfinite,
        skip_nonfinite=train.skip_nonfinite > 0,
    )


def check_batch_size(config: ConfigDict, devices: int, section: str = "train") -> None:
    """Checks that the batch can be split evenly.

    Args:
      config: the whole config.
      devices: the number of devices.
      section: where the size of the batch is set, for the error.

    Raises:
      JcmError: if `train.batch_size` is not a multiple of devices × accumulate.
    """
    batch_size, accumulate = config.train.batch_size, config.train.accumulate
    if batch_size % (devices * accumulate):
        raise JcmError(
            f"config.{section}.batch_size={batch_size} must be a multiple of devices x"
            f" accumulate = {devices} x {accumulate}"
        )


def _batch_shapes(
    config: ConfigDict, place: jax.sharding.NamedSharding
) -> dict[str, Any]:
    count, size = config.train.batch_size, config.data.image_size
    shape = (count, size, size, config.data.channels)
    return {
        "image": jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=place),
        "label": jax.ShapeDtypeStruct((count,), jnp.int32, sharding=place),
        "notice": jax.ShapeDtypeStruct((place.mesh.size,), jnp.int32, sharding=place),
    }
