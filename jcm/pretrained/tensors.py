"""Conversion of tensors of other projects to our trees; none may be left over."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jcm.networks import Params
from jcm.runtime.errors import JcmError

Path = tuple[str, ...]

# PyTorch's names for the leaves of our trees.
TORCH_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "bias": "bias",
}


def torch_name(modules: Mapping[str, str], path: Path) -> str:
    """Returns PyTorch's name for the tensor at a path in our tree.

    Args:
      modules: names of PyTorch's modules by the paths of ours.
      path: path of the tensor.
    """
    *module, leaf = path
    return f"{modules['/'.join(module)]}.{TORCH_LEAVES[leaf]}"


def fill(
    template: Params,
    tensors: Mapping[str, np.ndarray],
    name_of: Callable[[Path], str],
    convert: Callable[[Path, int, np.ndarray], np.ndarray] = lambda *a: a[-1],
) -> Params:
    """Returns parameters shaped like a template, as float32.

    All tensors are compared before any of another dtype is converted, since that can
    take twice the memory of the file.

    Args:
      template: parameters or shapes of our network.
      tensors: arrays by their names in the other project.
      name_of: from a path in our tree to the name in the other project.
      convert: from a path in our tree, the number of axes there, and the array of the
        other project, to our array.

    Raises:
      JcmError: names a tensor that is missing, left over or has the wrong shape.
    """
    left = dict(tensors)

    def place(tree: Any, path: Path) -> Any:
        if isinstance(tree, Mapping):
            return {name: place(value, (*path, name)) for name, value in tree.items()}
        name = name_of(path)
        theirs = take(left, name)
        if theirs.dtype.kind not in "fV":  # The kind V is that of bfloat16.
            raise JcmError(
                f"tensor {name!r} is {theirs.dtype}: only floats can be parameters,"
                " name another file"
            )
        array = convert(path, len(tree.shape), theirs)
        if array.shape != tree.shape:
            raise JcmError(
                f"tensor {name!r} of shape {theirs.shape} has no place in this network:"
                f" shape {tree.shape} is needed, name a file of the right size"
            )
        return array

    params = place(template, ())
    if left:
        raise JcmError(
            f"tensor {min(left)!r} has no place in this network: name a file of the"
            " right network"
        )
    return _as_float32(params)


def _as_float32(tree: Any) -> Any:
    """Converts the arrays of a tree that have another dtype."""
    if isinstance(tree, Mapping):
        return {name: _as_float32(value) for name, value in tree.items()}
    with np.errstate(over="ignore"):  # what is not finite is refused with its name
        return np.asarray(tree, np.float32)


def take(tensors: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Removes a tensor and returns it.

    Raises:
      JcmError: if there is no tensor of this name.
    """
    if name not in tensors:
        raise JcmError(f"tensor {name!r} is missing: name a file of the right network")
    return tensors.pop(name)


def shape(tensors: Mapping[str, np.ndarray], name: str, axes: int) -> tuple[int, ...]:
    """Returns the shape of one tensor.

    Args:
      tensors: arrays by name.
      name: name of the tensor.
      axes: the number of axes that it must have.

    Raises:
      JcmError: if the tensor is missing, empty, or has another number of axes.
    """
    if name not in tensors:
        raise JcmError(f"tensor {name!r} is missing: name a complete file")
    found = tensors[name].shape
    if len(found) != axes or 0 in found:
        raise JcmError(
            f"tensor {name!r} of shape {found} has no place in this network: name a"
            " file of the right network"
        )
    return found


def named(
    path: str, theirs: str, parts: Mapping[str, str], separator: str = "."
) -> dict[str, str]:
    """Returns the names of the layers of one block by their paths in our tree.

    Args:
      path: path of the block in our tree.
      theirs: name of the block in the other project.
      parts: names of the layers within the block by those in our tree.
      separator: what joins the names of a block and its layers.
    """
    return {
        f"{path}/{ours}": f"{theirs}{separator}{name}" for ours, name in parts.items()
    }


def channels_last(path: Path, axes: int, array: np.ndarray) -> np.ndarray:
    """Converts a tensor of PyTorch to our layout, in which output channels come last.

    Args:
      path: path of the tensor in our tree.
      axes: axes of the tensor in our tree: 4 for a convolution, 2 for a dense layer. In
        PyTorch a dense layer may be stored as a convolution of one pixel.
      array: the tensor of PyTorch.
    """
    if path[-1] != "kernel" or array.ndim < 2:
        return array
    if axes == 2:
        pixels = array.shape[2:]
        return array.reshape(array.shape[:2]).T if set(pixels) <= {1} else array
    return np.moveaxis(array, (0, 1), (-1, -2))


def channels_first(path: Path, array: np.ndarray) -> np.ndarray:
    """Converts our array to PyTorch's layout; the result is contiguous.

    Dense layers keep two axes.
    """
    if path[-1] == "kernel":
        array = np.moveaxis(array, (-1, -2), (0, 1))
    return np.ascontiguousarray(array)
