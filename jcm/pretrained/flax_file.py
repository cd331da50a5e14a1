"""Checkpoint files of flax (msgpack), read in parts and without running anything.

A file is a map of step, parameters, averages and state of the optimiser. Parts that are
not wanted are skipped, so that reading a file of 1 GB takes no more memory than the
parameters taken from it.

The package `msgpack` makes objects as it reads, ten times as large as the file if they
are small, and holds each array three times. The reader here counts entries and depth,
and reads each array into its place.
"""

import io
import math
import os
import pathlib
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jcm.runtime import budget
from jcm.runtime.errors import JcmError, shown

# The extension types of msgpack that flax uses.
_ARRAY, _SCALAR = 1, 3
_DTYPES = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    **{
        name: np.dtype(name)
        for name in (
            *("bool", "float16", "float32", "float64"),
            *("int8", "int16", "int32", "int64"),
            *("uint8", "uint16", "uint32", "uint64"),
        )
    },
}
# What follows each first byte of a value, from 0xc0 to 0xdf: what it is, and the format
# of a number, or of a length.
_KINDS: tuple[tuple[str, str], ...] = (
    *(("none", ""), ("unused", ""), ("false", ""), ("true", "")),
    *(("bytes", ">B"), ("bytes", ">H"), ("bytes", ">I")),
    *(("ext", ">B"), ("ext", ">H"), ("ext", ">I")),
    *(("number", ">f"), ("number", ">d")),
    *(("number", ">B"), ("number", ">H"), ("number", ">I"), ("number", ">Q")),
    *(("number", ">b"), ("number", ">h"), ("number", ">i"), ("number", ">q")),
    *(("ext", "1"), ("ext", "2"), ("ext", "4"), ("ext", "8"), ("ext", "16")),
    *(("text", ">B"), ("text", ">H"), ("text", ">I")),
    *(("list", ">H"), ("list", ">I"), ("map", ">H"), ("map", ">I")),
)


def load(
    path: str | os.PathLike,
    wanted: Collection[str],
    seen: Callable[[bytes | memoryview], None] = lambda block: None,
) -> dict[str, Any]:
    """Reads some parts of a checkpoint.

    Args:
      path: a file that `flax.serialization.to_bytes` made from a state.
      wanted: names of entries of the map, such as params_ema.
      seen: takes the bytes that were read, in order; parts of the result share memory
        with them.

    Returns:
      Those of the wanted entries that the file has, as nested dictionaries of arrays.

    Raises:
      JcmError: if the file is missing, incomplete, or has another format.
    """
    path = pathlib.Path(path)
    found: dict[str, Any] = {}
    what = "a complete checkpoint of flax"
    with budget.opened(path, what, "download it again") as file:
        reader = _Reader(file, seen)
        for _ in range(reader.length("map")):
            name = reader.text()
            value = reader.value(name in wanted)
            if name in wanted:
                found[name] = value
        if reader.left:
            raise budget.Refused(f"it has {reader.left} bytes too many")
    return found


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


class _Reader:
    """Reads the values of msgpack one after the other."""

    def __init__(
        self, file: io.BufferedReader, seen: Callable[[bytes | memoryview], None]
    ):
        self._file, self._seen = file, seen
        self._entries = 0
        self.left = os.fstat(file.fileno()).st_size

    def value(self, keep: bool, depth: int = 1) -> Any:
        """Reads the next value; of one that is not kept, no part stays in memory.

        Raises:
          budget.Refused: if there are too many values, or they are nested too deep.
        """
        self._entries += 1
        if self._entries > budget.ENTRIES or depth > budget.DEPTH:
            raise budget.Refused("it has too many entries")
        kind, size = self._header()
        match kind:
            case "map":
                pairs = (
                    (self.text(), self.value(keep, depth + 1)) for _ in range(size)
                )
                return dict(pairs if keep else _exhausted(pairs))
            case "list":
                values = (self.value(keep, depth + 1) for _ in range(size))
                return list(values if keep else _exhausted(values))
            case "ext":
                return self._extension(size, keep)
            case "text" | "bytes":
                if keep:
                    return self._string(size)
                self._skip(size)
                return None
        return size

    def length(self, wanted: str) -> int:
        """Reads the header of a map, list, text or bytes, and returns its length.

        Raises:
          budget.Refused: if there is something else.
        """
        kind, size = self._header()
        if kind != wanted:
            raise budget.Refused(f"there is a {kind} in place of a {wanted}")
        return size

    def text(self) -> str:
        """Reads a text, such as the name of an entry."""
        return self._string(self.length("text")).decode()

    def _header(self) -> tuple[str, Any]:
        """Reads what comes next: its kind, and its length or value."""
        (first,) = self._take(1)
        for kind, begin, end in (
            ("number", 0x00, 0x7F),
            ("map", 0x80, 0x8F),
            ("list", 0x90, 0x9F),
            ("text", 0xA0, 0xBF),
        ):
            if first <= end:
                return kind, first - begin
        if first >= 0xE0:
            return "number", first - 0x100
        kind, form = _KINDS[first - 0xC0]
        if kind == "unused":
            raise budget.Refused("it is no msgpack")
        if not form:
            return kind, {"none": None, "false": False, "true": True}[kind]
        if form.isdigit():
            return kind, int(form)
        return kind, struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _extension(self, size: int, keep: bool) -> np.ndarray | None:
        (code,) = self._take(1)
        if not keep:
            self._skip(size)
            return None
        if code not in (_ARRAY, _SCALAR):
            raise budget.Refused(f"it has an entry of type {code}")
        after = self.left - size
        array = self._array()
        if self.left != after:
            raise budget.Refused("an array is not described as flax does it")
        return array

    def _array(self) -> np.ndarray:
        """Reads an array: a list of its shape, the name of its dtype, and its bytes."""
        if self.length("list") != 3:
            raise budget.Refused("an array is not described as flax does it")
        axes = self.length("list")
        if axes > budget.DIMENSIONS:
            raise budget.Refused(
                f"an array has more than {budget.DIMENSIONS} dimensions"
            )
        shape = tuple(self.length("number") for _ in range(axes))
        name = self.text()
        if name not in _DTYPES:
            raise budget.Refused(f"it has an array of {shown(name)}")
        size = self.length("bytes")
        if any(type(length) is not int or length < 0 for length in shape) or (
            math.prod(shape) * _DTYPES[name].itemsize != size
        ):
            raise budget.Refused(f"an array of shape {shape} has {size:,} bytes")
        self._check(size)
        array = np.empty(shape, _DTYPES[name])
        content = array.reshape(-1).view(np.uint8).data
        if self._file.readinto(content) != size:
            raise budget.Refused("it is truncated")
        self._seen(content)
        self.left -= size
        return array

    def _string(self, size: int) -> bytes:
        if size > budget.NAME_BYTES:
            raise budget.Refused(f"it has a text of {size:,} bytes")
        return self._take(size)

    def _take(self, size: int) -> bytes:
        self._check(size)
        self.left -= size
        content = self._file.read(size)
        self._seen(content)
        return content

    def _skip(self, size: int) -> None:
        self._check(size)
        self.left -= size
        self._file.seek(size, os.SEEK_CUR)

    def _check(self, size: int) -> None:
        if size > self.left:
            raise budget.Refused("it is truncated")


def _exhausted(values: Iterable[Any]) -> Iterator[Any]:
    """Reads all values, and yields none."""
    for _ in values:
        yield from ()
