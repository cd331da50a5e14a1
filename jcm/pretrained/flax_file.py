"""Checkpoint files of flax (msgpack), read in parts and without running anything.

A file is a map of step, parameters, averages and state of the optimiser. Parts that are
not wanted are skipped, so that reading a file of 1 GB takes no more memory than the
parameters taken from it.
"""

import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

from jcm.runtime.errors import JcmError, one_line

# The extension types of msgpack that flax uses.
_ARRAY, _SCALAR = 1, 3


class _Refused(Exception):
    """The content is not what flax writes; the message states why."""


def load(path: str | os.PathLike, wanted: Collection[str]) -> dict[str, Any]:
    """Reads some parts of a checkpoint.

    Args:
      path: a file that `flax.serialization.to_bytes` made from a state.
      wanted: names of entries of the map, such as params_ema.

    Returns:
      Those of the wanted entries that the file has, as nested dictionaries of arrays.

    Raises:
      JcmError: if the file is missing, incomplete, or has another format.
    """
    path = pathlib.Path(path)
    found: dict[str, Any] = {}
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            unpacker = msgpack.Unpacker(
                file, ext_hook=_decode, max_buffer_size=max(size, 1), raw=False
            )
            for _ in range(unpacker.read_map_header()):
                name = unpacker.unpack()
                if name in wanted:
                    found[name] = unpacker.unpack()
                else:
                    unpacker.skip()
            if unpacker.tell() != size:
                raise _Refused(f"it has {size - unpacker.tell()} bytes too many")
        return found
    except OSError as error:
        raise JcmError(
            f"cannot read {path}: {error.strerror or error}: name another file"
        ) from error
    # A broken file can raise anything, and the remedy is the same.
    except Exception as error:
        reason = one_line(error)
        raise JcmError(
            f"{path} is not a complete checkpoint of flax ({reason}): download it again"
        ) from error


def part(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns one subtree of a checkpoint.

    Raises:
      JcmError: if it is missing or not a tree.
    """
    found = tree.get(name)
    if not isinstance(found, dict):
        raise JcmError(
            f"entry {name!r} is a {type(found).__name__}, not a tree: name another file"
        )
    return found


def count(tree: Mapping[str, Any], name: str) -> int:
    """Returns one integer of a checkpoint.

    Raises:
      JcmError: if it is anything else.
    """
    found = np.asarray(tree[name])
    if found.shape or found.dtype.kind not in "iu":
        raise JcmError(f"entry {name!r} is not an integer: name another file")
    return int(found)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Returns the arrays of a tree by slash-separated path.

    Raises:
      JcmError: if the tree holds anything but arrays in dictionaries.
    """
    flat: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        if not isinstance(name, str):
            raise JcmError(
                f"entry {name!r} of {prefix!r} has no name: name another file"
            )
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            flat |= flatten(value, f"{path}/")
        elif isinstance(value, np.ndarray):
            flat[path] = value
        else:
            raise JcmError(
                f"entry {path!r} is a {type(value).__name__}, not an array: name"
                " another file"
            )
    return flat


def _decode(code: int, data: bytes) -> np.ndarray:
    if code not in (_ARRAY, _SCALAR):
        raise _Refused(f"it has an entry of type {code}")
    shape, name, content = msgpack.unpackb(data, raw=True)
    name = name.decode()
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    if dtype.hasobject:
        raise _Refused(f"it has an array of {name}")
    return np.frombuffer(content, dtype).reshape(shape)
