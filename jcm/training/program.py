"""The training step of a config with its shapes, before anything is allocated."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from jcm import methods
from jcm.methods import Frozen, Method
from jcm.model import build
from jcm.networks import Network, Params
from jcm.run import state as state_lib
from jcm.run.state import State
from jcm.runtime import sharding
from jcm.runtime.errors import JcmError
from jcm.training import optim
from jcm.training.step import TrainStep, make_train_step, trace_step


@dataclasses.dataclass(frozen=True)
class Program:
    """A training step, and the shapes and placement of what it works on.

    Attributes:
      network: F.
      method: gives the loss and the denoiser.
      mesh: the devices.
      init_key: the key of random first parameters.
      new_state: makes the state before the first step from parameters.
      state: the shapes of the state.
      frozen: the shapes of what does not change during the run.
      batch: the shapes of a global batch.
      step: (state, frozen, batch) -> (state, metrics).
    """

    network: Network
    method: Method
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
    devices: Sequence[jax.Device] | None = None,
) -> Program:
    """Builds the training step of a config.

    Args:
      config: the whole config.
      num_classes: the number of classes in the data.
      devices: the devices to train on; None for all.

    Raises:
      JcmError: for settings that do not fit together or do not fit the devices.
    """
    mesh = sharding.make_mesh(config.mesh.fsdp, devices)
    check_batch_size(config, mesh.size)
    network = build.network(config, num_classes)
    method = methods.create(config, network)
    optimizer = optim.create(config.optim, config.train.batch_size)
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    new_state = functools.partial(
        state_lib.create,
        optimizer=optimizer,
        keeps_target=method.keeps_target,
        ema_rates=config.train.ema_rates,
    )
    step = make_train_step(
        method,
        optimizer,
        seed_key=step_key,
        accumulate=config.train.accumulate,
        skip_nonfinite=config.train.skip_nonfinite > 0,
        platform=mesh.devices.flat[0].platform,
    )
    rules = sharding.Rules.of(config.mesh)
    place = functools.partial(sharding.shard_tree, mesh, rules=rules)
    state = sharding.with_placement(jax.eval_shape(new_state, network.shapes), place)
    sharding.check_rules_match(state, rules)
    frozen = Frozen(
        teacher=network.shapes if method.needs_teacher else None,
        constants=jax.eval_shape(lambda: method.constants),
    )
    return Program(
        network=network,
        method=method,
        mesh=mesh,
        init_key=init_key,
        new_state=new_state,
        state=state,
        frozen=sharding.with_placement(frozen, place),
        batch=_batch_shapes(config, sharding.batch(mesh)),
        step=step,
    )


def check_batch_size(config: ConfigDict, devices: int) -> None:
    """Checks that the batch can be split evenly.

    Raises:
      JcmError: if `train.batch_size` is not a multiple of devices × accumulate.
    """
    batch_size, accumulate = config.train.batch_size, config.train.accumulate
    if batch_size % (devices * accumulate):
        raise JcmError(
            f"config.train.batch_size={batch_size} must be a multiple of devices x "
            f"accumulate = {devices} x {accumulate}"
        )


def _batch_shapes(
    config: ConfigDict, place: jax.sharding.NamedSharding
) -> dict[str, Any]:
    count, size = config.train.batch_size, config.data.image_size
    shape = (count, size, size, config.data.channels)
    return {
        "image": jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=place),
        "label": jax.ShapeDtypeStruct((count,), jnp.int32, sharding=place),
        "stop": jax.ShapeDtypeStruct((place.mesh.size,), jnp.int32, sharding=place),
    }
