"""Tensors of others into trees of ours: every one has a place, every place gets one."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jcm.networks import Params
from jcm.runtime.errors import JcmError

Path = tuple[str, ...]

# What PyTorch calls our leaves.
TORCH_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "bias": "bias",
}


def fill(
    template: Params,
    tensors: Mapping[str, np.ndarray],
    name_of: Callable[[Path], str],
    convert: Callable[[Path, int, np.ndarray], np.ndarray] = lambda *a: a[-1],
) -> Params:
    """Parameters shaped like a template.

    Args:
      template: parameters or shapes of our network.
      tensors: arrays by the names that others give them.
      name_of: from a path in our tree to their name.
      convert: from a path in our tree, the number of axes there, and their array to
        ours.

    Raises:
      JcmError: for a missing, left-over or wrongly shaped tensor, by its name.
    """
    left = dict(tensors)

    def place(tree: Any, path: Path) -> Any:
        if isinstance(tree, Mapping):
            return {name: place(value, (*path, name)) for name, value in tree.items()}
        name = name_of(path)
        theirs = take(left, name)
        if theirs.dtype.kind not in "fV":  # V: bfloat16
            raise JcmError(f"tensor {name!r} is of {theirs.dtype}, not of fractions")
        array = np.asarray(convert(path, len(tree.shape), theirs), np.float32)
        if array.shape != tree.shape:
            raise JcmError(
                f"tensor {name!r} of shape {theirs.shape} has no place in this network,"
                " which has another size"
            )
        return array

    params = place(template, ())
    if left:
        raise JcmError(
            f"tensor {min(left)!r} has no place in this network: the file is of another"
        )
    return params


def take(tensors: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Removes a tensor and gives it.

    Raises:
      JcmError: where there is none of this name.
    """
    if name not in tensors:
        raise JcmError(f"tensor {name!r} is missing: the file is of another network")
    return tensors.pop(name)


def shape(tensors: Mapping[str, np.ndarray], name: str, axes: int) -> tuple[int, ...]:
    """The shape of one tensor, which must be there and have so many axes.

    Raises:
      JcmError: names the tensor.
    """
    if name not in tensors:
        raise JcmError(f"tensor {name!r} is missing: the file is not whole")
    found = tensors[name].shape
    if len(found) != axes or 0 in found:
        raise JcmError(
            f"tensor {name!r} of shape {found} has no place in this network: the file"
            " is of another"
        )
    return found


def named(
    path: str, theirs: str, parts: Mapping[str, str], separator: str = "."
) -> dict[str, str]:
    """Our module path -> theirs, for the layers of one block."""
    return {
        f"{path}/{ours}": f"{theirs}{separator}{name}" for ours, name in parts.items()
    }


def channels_last(path: Path, axes: int, array: np.ndarray) -> np.ndarray:
    """Turns a tensor of PyTorch into ours, where output channels come last.

    Args:
      path: in our tree.
      axes: 4 for a convolution; 2 for a dense layer, which may be a convolution of one
        pixel there.
      array: theirs.
    """
    if path[-1] != "kernel" or array.ndim < 2:
        return array
    if axes == 2:
        pixels = array.shape[2:]
        return array.reshape(array.shape[:2]).T if set(pixels) <= {1} else array
    return np.moveaxis(array, (0, 1), (-1, -2))


def channels_first(path: Path, array: np.ndarray) -> np.ndarray:
    """The way back, of dense layers with two axes; contiguous."""
    if path[-1] == "kernel":
        array = np.moveaxis(array, (-1, -2), (0, 1))
    return np.ascontiguousarray(array)
