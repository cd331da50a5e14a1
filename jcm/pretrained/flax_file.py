"""Flax's checkpoint files (msgpack), part by part and without running anything.

Such a file is one map: step, parameters, averages, state of the optimizer. Parts that
are not asked for are passed over, so that a file of 1 GB costs no more memory than the
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

# Types that flax adds to msgpack.
_ARRAY, _SCALAR = 1, 3


class _Refused(Exception):
    """The content is not what flax writes; says why."""


def load(path: str | os.PathLike, wanted: Collection[str]) -> dict[str, Any]:
    """Reads some parts of a checkpoint.

    Args:
      path: a file that `flax.serialization.to_bytes` made of a state.
      wanted: names at the top of the map, such as params_ema.

    Returns:
      What the file has of them: nested dictionaries of arrays.

    Raises:
      JcmError: the file is missing, cut short, or no such file.
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
                raise _Refused(f"{size - unpacker.tell()} bytes too many")
        return found
    except OSError as error:
        raise JcmError(f"cannot read {path}: {error.strerror or error}") from error
    # Foreign bytes can fail in any way, with one remedy.
    except Exception as error:
        reason = one_line(error)
        raise JcmError(
            f"{path} is not a whole checkpoint of flax ({reason}): fetch it again"
        ) from error


def part(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One branch of a checkpoint.

    Raises:
      JcmError: where it is missing or no branch.
    """
    found = tree.get(name)
    if not isinstance(found, dict):
        raise JcmError(f"entry {name!r} is a {type(found).__name__}, not a tree")
    return found


def count(tree: Mapping[str, Any], name: str) -> int:
    """One whole number of a checkpoint.

    Raises:
      JcmError: where it is anything else.
    """
    found = np.asarray(tree[name])
    if found.shape or found.dtype.kind not in "iu":
        raise JcmError(f"entry {name!r} is no whole number")
    return int(found)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Arrays by slash-separated path.

    Raises:
      JcmError: for anything but arrays in dictionaries.
    """
    flat: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        if not isinstance(name, str):
            raise JcmError(f"entry {name!r} of {prefix!r} has no name")
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            flat |= flatten(value, f"{path}/")
        elif isinstance(value, np.ndarray):
            flat[path] = value
        else:
            raise JcmError(f"entry {path!r} is a {type(value).__name__}, not an array")
    return flat


def _decode(code: int, data: bytes) -> np.ndarray:
    if code not in (_ARRAY, _SCALAR):
        raise _Refused(f"an entry of type {code}")
    shape, name, content = msgpack.unpackb(data, raw=True)
    name = name.decode()
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    if dtype.hasobject:
        raise _Refused(f"an array of {name}")
    return np.frombuffer(content, dtype).reshape(shape)
