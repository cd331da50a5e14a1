"""The device mesh, and the one rule by which arrays are placed on it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jcm.errors import JcmError

_AXES = ("data", "fsdp")


def make_mesh(fsdp: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh `data` x `fsdp` over all devices of all processes.

    Args:
      fsdp: devices that share one copy of the parameters.
      devices: instead of all.

    Raises:
      JcmError: where `fsdp` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        raise JcmError(
            f"config.mesh.fsdp={fsdp} must divide the number of devices, {len(devices)}"
        )
    shape = (len(devices) // fsdp, fsdp)
    return jax.make_mesh(
        shape, _AXES, axis_types=(AxisType.Auto,) * len(_AXES), devices=devices
    )


def batch(mesh: Mesh) -> NamedSharding:
    """Examples spread over every device."""
    return NamedSharding(mesh, PartitionSpec(_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shard_tree(mesh: Mesh, tree: Any, min_bytes: float) -> Any:
    """Placement of parameters, optimiser state and averages, leaf by leaf.

    A leaf of at least `min_bytes` is split over `fsdp` along its largest axis that
    divides; anything else is replicated.

    Args:
      mesh: from `make_mesh`.
      tree: arrays or shapes.
      min_bytes: below this size communication costs more than memory is won.

    Returns:
      A `NamedSharding` for every leaf.
    """
    size = mesh.shape["fsdp"]

    def place(leaf: Any) -> NamedSharding:
        axes = [i for i, length in enumerate(leaf.shape) if length % size == 0]
        if size == 1 or not axes or leaf.size * leaf.dtype.itemsize < min_bytes:
            return replicated(mesh)
        largest = max(axes, key=lambda i: leaf.shape[i])
        spec = [None] * len(leaf.shape)
        spec[largest] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(place, tree)


def with_placement(shapes: Any, place: Callable[[Any], Any]) -> Any:
    """Shapes with the placement that `place` gives them."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=where
        ),
        shapes,
        place(shapes),
    )


def bytes_per_device(tree: Any, shardings: Any) -> int:
    """Bytes that one device holds of a tree placed so."""

    def local(leaf: Any, sharding: NamedSharding) -> int:
        return int(np.prod(sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(local, tree, shardings)))


def local(params: Any) -> Any:
    """This process's copy of parameters that every process holds in full."""
    return jax.tree.map(
        lambda leaf: (
            leaf
            if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
            else leaf.addressable_data(0)
        ),
        params,
    )
