"""The device mesh, and the rule that places arrays on it."""

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
    """Returns a mesh with the axes `data` and `fsdp`.

    Args:
      fsdp: the number of devices that share one copy of the parameters.
      devices: the devices of the mesh; by default all devices of all processes.

    Raises:
      JcmError: if `fsdp` does not divide the number of devices of a slice.
    """
    devices = jax.devices() if devices is None else devices
    grid = device_grid(devices, fsdp)
    return Mesh(grid, _AXES, axis_types=(AxisType.Auto,) * len(_AXES))


def device_grid(devices: Sequence[Any], fsdp: int) -> np.ndarray:
    """Returns the devices in the order of the mesh, shape (data, fsdp).

    The devices of an `fsdp` group communicate most. The network between TPU slices
    (DCN) is slower than the one within a slice, so no group spans two slices. GPUs keep
    the order of their machines, and a group may span several of them.

    Args:
      devices: JAX devices.
      fsdp: the number of devices of a group.

    Raises:
      JcmError: if `fsdp` does not divide the number of devices of a slice, or slices
        differ in size.
    """
    slices = collections.Counter(map(_slice, devices))
    each = len(devices) // len(slices)
    if len(set(slices.values())) > 1:
        raise JcmError(
            f"slices differ in their devices, {dict(slices)}: use equal slices"
        )
    if fsdp < 1 or each % fsdp:
        where = f" of each of {len(slices)} slices" if len(slices) > 1 else ""
        raise JcmError(
            f"config.mesh.fsdp={fsdp} must divide the number of devices{where}, {each}"
        )
    shape = (each // fsdp, fsdp)
    # A group may be smaller than every axis of the network of a slice.
    split = {"allow_split_physical_axes": True}
    if len(slices) == 1:
        return mesh_utils.create_device_mesh(shape, devices, **split)
    return mesh_utils.create_hybrid_device_mesh(
        shape, (len(slices), 1), devices, **split
    )


def _slice(device: Any) -> int:
    """Returns the slice of a TPU; for GPUs 0, not the machine as in JAX."""
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else 0


def batch(mesh: Mesh) -> NamedSharding:
    """Returns the placement that splits examples over all devices."""
    return NamedSharding(mesh, PartitionSpec(_AXES))


def rows(place: NamedSharding, count: int) -> Int[np.ndarray, " n"]:
    """Returns the indices of the examples that this process provides, ascending.

    They need not be consecutive: the order of TPU devices in the mesh follows their
    network.

    Args:
      place: the placement of the batch, from `batch`.
      count: the number of examples in the global batch.
    """
    blocks = {
        (where[0].start or 0, count if where[0].stop is None else where[0].stop)
        for where in place.addressable_devices_indices_map((count,)).values()
        if where is not None
    }
    return np.concatenate([np.arange(*block) for block in sorted(blocks)])


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the placement that gives every device the whole array."""
    return NamedSharding(mesh, PartitionSpec())


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which axis of a tensor is split over `fsdp`.

    Attributes:
      min_bytes: smaller tensors are replicated, since splitting them saves little
        memory and costs communication.
      exceptions: pairs of a regular expression, which is searched for in a tensor's
        path, and the axis to split, None to replicate. The first match applies,
        whatever the size of the tensor.
    """

    min_bytes: float
    exceptions: tuple[tuple[str, int | None], ...] = ()

    @classmethod
    def of(cls, config: ConfigDict) -> "Rules":
        """Returns the rules of `config.mesh`.

        Raises:
          JcmError: if an exception cannot be parsed.
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
                    f"config.mesh.rules: {text!r} cannot be parsed ({error}): write for"
                    ' example "conv_in/kernel=3" or "norm=none"'
                ) from error
            exceptions.append((pattern, number))
        return cls(config.fsdp_min_mib * 2**20, tuple(exceptions))


def shard_tree(mesh: Mesh, tree: Any, rules: Rules) -> Any:
    """Returns the placement of parameters, optimizer state and averages.

    A large leaf is split over `fsdp` along its largest axis that `fsdp` divides. All
    other leaves are replicated. The copies of a parameter have paths with the same
    end, so that the rules place them in the same way.

    Args:
      mesh: from `make_mesh`.
      tree: arrays or shapes.
      rules: which leaves are large, and the exceptions.

    Returns:
      A tree with a `NamedSharding` for every leaf.

    Raises:
      JcmError: if an exception names an axis that a leaf lacks, or that `fsdp` does not
        divide.
    """
    size = mesh.shape["fsdp"]

    def place(path: Any, leaf: Any) -> NamedSharding:
        axis = _axis(path, leaf)
        if size == 1 or axis is None:
            return replicated(mesh)
        spec: list[str | None] = [None] * len(leaf.shape)
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
                        f" fsdp={size}: correct the axis"
                    )
                return axis
        axes = [i for i, length in enumerate(leaf.shape) if length % size == 0]
        if not axes or leaf.size * leaf.dtype.itemsize < rules.min_bytes:
            return None
        return max(axes, key=lambda i: leaf.shape[i])

    return jax.tree.map_with_path(place, tree)


def check_rules_match(tree: Any, rules: Rules) -> None:
    """Checks that each exception of the rules matches a leaf of a tree.

    Raises:
      JcmError: names the first exception that matches none.
    """
    names = [_name(path) for path, _ in jax.tree.leaves_with_path(tree)]
    for pattern, _ in rules.exceptions:
        if not any(re.search(pattern, name) for name in names):
            raise JcmError(
                f"config.mesh.rules: {pattern!r} matches no tensor: use a part of a"
                f" name such as {names[len(names) // 2]}"
            )


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def with_placement(shapes: Any, place: Callable[[Any], Any]) -> Any:
    """Returns shapes with a placement.

    Args:
      shapes: a tree of arrays or shapes.
      place: returns a tree of placements for a tree of shapes.
    """
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=where
        ),
        shapes,
        place(shapes),
    )


def bytes_per_device(tree: Any) -> int:
    """Returns how many bytes of placed arrays or shapes one device holds."""

    def local(leaf: Any) -> int:
        return int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize

    return sum(map(local, jax.tree.leaves(tree)))


def overview(tree: Any) -> str:
    """Describes how much of a tree of placed arrays or shapes is split."""
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
