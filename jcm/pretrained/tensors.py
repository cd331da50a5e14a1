"""Tensors of others into trees of ours: every one has a place, every place gets one."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jcm.errors import JcmError
from jcm.models import Params

Path = tuple[str, ...]


def fill(
    template: Params,
    tensors: Mapping[str, np.ndarray],
    name_of: Callable[[Path], str],
    convert: Callable[[Path, np.ndarray], np.ndarray] = lambda _, array: array,
) -> Params:
    """Parameters shaped like a template.

    Args:
      template: parameters or shapes of our network.
      tensors: arrays by the names that others give them.
      name_of: from a path in our tree to their name.
      convert: from a path in our tree and their array to ours.

    Raises:
      JcmError: for a missing, left-over or wrongly shaped tensor, by its name.
    """
    left = dict(tensors)

    def place(tree: Any, path: Path) -> Any:
        if isinstance(tree, Mapping):
            return {name: place(value, (*path, name)) for name, value in tree.items()}
        name = name_of(path)
        theirs = take(left, name)
        array = np.asarray(convert(path, theirs), np.float32)
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
