"""The device mesh, and the one rule by which arrays are placed on it."""

import collections
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int
from ml_collections import ConfigDict

from jcm.runtime.errors import JcmError

_AXES = ("data", "fsdp")


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh `data` x `fsdp` over all devices of all processes.

    Args:
      fsdp: devices that share one copy of the parameters.
      devices: instead of all.

    Raises:
      JcmError: where `fsdp` does not divide the number of devices of a slice.
    """
    devices = jax.devices() if devices is None else devices
    grid = device_grid(devices, fsdp)
    return Mesh(grid, _AXES, axis_types=(AxisType.Auto,) * len(_AXES))


def device_grid(devices: Sequence[Any], fsdp: int) -> np.ndarray:
    """Devices as the mesh has them: shape (data, fsdp).

    The devices of one `fsdp` group talk most. Where there are several slices, whose
    networks are fast inside and slow between (DCN), no group spans two of them.

    GPUs of several machines are neighbours in the order of their machines.

    Raises:
      JcmError: where `fsdp` does not divide the number of devices of a slice.
    """
    slices = collections.Counter(map(_slice, devices))
    each = len(devices) // len(slices)
    if len(set(slices.values())) > 1:
        raise JcmError(
            f"slices differ in their devices, {dict(slices)}: use equal ones"
        )
    if fsdp < 1 or each % fsdp:
        where = f" of each of {len(slices)} slices" if len(slices) > 1 else ""
        raise JcmError(
            f"config.mesh.fsdp={fsdp} must divide the number of devices{where}, {each}"
        )
    shape = (each // fsdp, fsdp)
    # A group may be smaller than any axis of the slice's own network.
    split = {"allow_split_physical_axes": True}
    if len(slices) == 1:
        return mesh_utils.create_device_mesh(shape, devices, **split)
    return mesh_utils.create_hybrid_device_mesh(
        shape, (len(slices), 1), devices, **split
    )


def _slice(device: Any) -> int:
    """Of TPUs; JAX calls each machine with GPUs a slice, whose networks are closer."""
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else 0


def batch(mesh: Mesh) -> NamedSharding:
    """Examples spread over every device."""
    return NamedSharding(mesh, PartitionSpec(_AXES))


def rows(place: NamedSharding, count: int) -> Int[np.ndarray, " n"]:
    """Which examples of a global batch this process gives, in order.

    Not always those that follow each other: devices of a TPU lie in the mesh as their
    network wants it.

    Args:
      place: of the batch.
      count: its examples.
    """
    blocks = {
        (where[0].start or 0, count if where[0].stop is None else where[0].stop)
        for where in place.addressable_devices_indices_map((count,)).values()
    }
    return np.concatenate([np.arange(*block) for block in sorted(blocks)])


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which axis of a tensor is split over `fsdp`.

    Attributes:
      min_bytes: smaller tensors are replicated: communication costs more than memory
        is won.
      exceptions: pairs of a regular expression, looked for in a tensor's path, and its
        axis, None to replicate; the first that fits counts, whatever the size.
    """

    min_bytes: float
    exceptions: tuple[tuple[str, int | None], ...] = ()

    @classmethod
    def of(cls, config: ConfigDict) -> "Rules":
        """The rules of `config.mesh`.

        Raises:
          JcmError: for an exception that is not understood.
        """
        exceptions = []
        for text in config.rules:
            pattern, equals, axis = text.rpartition("=")
            try:
                re.compile(pattern)
                number = None if axis == "none" else int(axis)
                if not equals or not pattern or (number or 0) < 0:
                    raise ValueError("it must be REGULAR-EXPRESSION=AXIS")
            except (ValueError, re.error) as error:
                raise JcmError(
                    f"config.mesh.rules: {text!r} is not understood ({error}): write"
                    ' such as "conv_in/kernel=3" or "norm=none"'
                ) from error
            exceptions.append((pattern, number))
        return cls(config.fsdp_min_mib * 2**20, tuple(exceptions))


def shard_tree(mesh: Mesh, tree: Any, rules: Rules) -> Any:
    """Placement of parameters, optimiser state and averages, leaf by leaf.

    A large leaf is split over `fsdp` along its largest axis that divides; anything else
    is replicated. Copies of one parameter are named alike and so are placed alike.

    Args:
      mesh: from `make_mesh`.
      tree: arrays or shapes.
      rules: say what is large, and name exceptions.

    Returns:
      A `NamedSharding` for every leaf.

    Raises:
      JcmError: for an exception with an axis that a leaf lacks or that does not divide.
    """
    size = mesh.shape["fsdp"]

    def place(path: Any, leaf: Any) -> NamedSharding:
        axis = _axis(path, leaf)
        if size == 1 or axis is None:
            return replicated(mesh)
        spec = [None] * len(leaf.shape)
        spec[axis] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    def _axis(path: Any, leaf: Any) -> int | None:
        name = _name(path)
        for pattern, axis in rules.exceptions:
            if leaf.shape and re.search(pattern, name):
                if axis is not None and (
                    axis >= len(leaf.shape) or leaf.shape[axis] % size
                ):
                    raise JcmError(
                        f"config.mesh.rules: {pattern!r} splits axis {axis} of {name},"
                        f" whose shape {leaf.shape} has no such axis that divides by"
                        f" fsdp={size}"
                    )
                return axis
        axes = [i for i, length in enumerate(leaf.shape) if length % size == 0]
        if not axes or leaf.size * leaf.dtype.itemsize < rules.min_bytes:
            return None
        return max(axes, key=lambda i: leaf.shape[i])

    return jax.tree.map_with_path(place, tree)


def check_rules_match(tree: Any, rules: Rules) -> None:
    """Makes sure that each exception names something.

    Raises:
      JcmError: for one that fits no leaf.
    """
    names = [_name(path) for path, _ in jax.tree.leaves_with_path(tree)]
    for pattern, _ in rules.exceptions:
        if not any(re.search(pattern, name) for name in names):
            raise JcmError(
                f"config.mesh.rules: {pattern!r} fits no tensor; they are named such"
                f" as {names[len(names) // 2]}"
            )


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def with_placement(shapes: Any, place: Callable[[Any], Any]) -> Any:
    """Shapes with the placement that `place` gives them."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=where
        ),
        shapes,
        place(shapes),
    )


def bytes_per_device(tree: Any) -> int:
    """Bytes that one device holds of placed arrays, or of shapes with a placement."""

    def local(leaf: Any) -> int:
        return int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize

    return sum(map(local, jax.tree.leaves(tree)))


def overview(tree: Any) -> str:
    """What of a tree is split, for people."""
    leaves = jax.tree.leaves(tree)
    split = [leaf for leaf in leaves if not leaf.sharding.is_fully_replicated]
    total, held = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in each)
        for each in (leaves, split)
    )
    return (
        f"{len(split)} of {len(leaves)} tensors are split over devices,"
        f" {100 * held / max(total, 1):.1f} % of {total / 2**20:.0f} MiB; each device"
        f" holds {bytes_per_device(tree) / 2**20:.0f} MiB"
    )
