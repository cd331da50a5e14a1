"""PyTorch weight files, read without PyTorch and without running what they name.

A `.pt` or `.pth` file holds a pickle that describes tensors, and their bytes. PyTorch
1.6 and later puts them into a zip archive, while earlier versions write one after the
other. In general a pickle can call anything that it names; this reader accepts
dictionaries, lists, numbers and tensors, and raises for anything else.
"""

import collections
import dataclasses
import io
import math
import os
import pathlib
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from jcm.runtime.errors import JcmError, one_line

# The first number of a file in the older format, and the version that follows it.
_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
# The operations in PyTorch's pickles, and their counterparts in protocol 4.
_OPERATIONS = frozenset(
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT"
    " BINUNICODE SHORT_BINUNICODE EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2"
    " TUPLE3 SETITEM SETITEMS APPEND APPENDS GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID"
    " BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET".split()
)
# Views may share a storage, but each is copied here. All copies together may be this
# many times as large as the storages.
_LARGEST_SHARE = 4
# A pickle describes a tensor in about a hundred bytes; the largest released network has
# fewer than two thousand tensors.
_LARGEST_PICKLE = 64 * 2**20


class _Refused(Exception):
    """The content is not what a file of weights holds; the message states why."""


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A reference to numbers that are stored elsewhere in the file."""

    key: str
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage; offset and strides are in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def load(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a state dict.

    Args:
      path: a file that `torch.save` wrote of a dictionary of tensors.

    Returns:
      A separate array for each tensor, by name.

    Raises:
      JcmError: if the file is missing, incomplete or compressed, or holds anything but
        tensors by name. Nothing that it names is ever run.
    """
    path = pathlib.Path(path)
    try:
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                tree, storages = _read_zip(file)
            else:
                file.seek(0)
                tree, storages = _read_stream(file)
        return _resolve(tree, storages)
    except OSError as error:
        raise JcmError(
            f"cannot read {path}: {error.strerror or error}: name another file"
        ) from error
    # Unpickling a broken file can raise anything, and the remedy is the same.
    except Exception as error:
        reason = one_line(error)
        raise JcmError(
            f"{path} is not a complete PyTorch file of weights ({reason}): download it"
            " again, or save only the state dict with torch.save"
        ) from error


def _read_zip(file: io.BufferedReader) -> tuple[Any, dict[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        # PyTorch never compresses, and a compressed archive could fill the memory.
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise _Refused("its members are compressed")
        names = [member.filename for member in members]
        found = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
        if len(found) != 1:
            raise _Refused("the archive has no data.pkl")
        folder = found[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in names:
            raise _Refused("it is a TorchScript program")
        if folder + "byteorder" in names:
            order = archive.read(folder + "byteorder")
            if order != b"little":
                raise _Refused(f"its byte order is {order!r}")
        tree = _unpickle(io.BytesIO(archive.read(found[0])))
        prefix = folder + "data/"
        return tree, {
            name.removeprefix(prefix): archive.read(name)
            for name in names
            if name.startswith(prefix)
        }


def _read_stream(file: io.BufferedReader) -> tuple[Any, dict[str, bytes]]:
    magic, version = _unpickle(file), _unpickle(file)
    if magic != _MAGIC or version != _VERSION:
        raise _Refused("it is neither a zip archive nor in PyTorch's older format")
    system, tree, keys = _unpickle(file), _unpickle(file), _unpickle(file)
    if type(system) is not dict or system.get("little_endian") is not True:
        raise _Refused("its byte order is not little-endian")
    dtypes = {leaf.storage.key: leaf.storage.dtype for leaf in _tensors(tree).values()}
    storages = {}
    for key in keys:
        (count,) = struct.unpack("<q", _exactly(file, 8))
        # The dtype, and so the size, of a storage is known only from its tensors.
        if type(key) is not str or key not in dtypes:
            raise _Refused("a storage belongs to no tensor")
        storages[key] = _exactly(file, count * dtypes[key].itemsize)
    return tree, storages


def _exactly(file: io.BufferedReader, size: int) -> bytes:
    left = os.fstat(file.fileno()).st_size - file.tell()
    if not 0 <= size <= left:
        raise _Refused(f"{size} bytes are announced, but there are {left}")
    return file.read(size)


def _unpickle(file: io.BufferedReader | io.BytesIO) -> Any:
    """Reads one pickle, after a check of its operations.

    Without the check, loading a crafted pickle could exhaust the memory.
    """
    started = file.tell()
    operations = 0
    for operation, argument, _ in pickletools.genops(file):
        operations += 1
        if operation.name not in _OPERATIONS:
            raise _Refused(f"it uses {operation.name}, which is refused")
        # Pickles fill the slots of the memo in order, so no slot exceeds this count.
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            if argument is None or int(argument) > operations:
                raise _Refused(f"it uses memo slot {argument}")
        if file.tell() - started > _LARGEST_PICKLE:
            raise _Refused("the description of the tensors does not end")
    file.seek(started)
    return _Unpickler(file, encoding="utf-8").load()


class _Unpickler(pickle._Unpickler):
    """Reads containers, numbers and descriptions of tensors, and calls nothing.

    Its base is the unpickler written in Python, so that the keys of dictionaries can be
    checked: a tuple of tuples of the same tuple would take forever to hash.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(
        pickle._Unpickler.dispatch
    )
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def _set_items(self, target: Any, items: list[Any]) -> None:
        if not isinstance(target, dict):
            raise _Refused(f"items are put into a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise _Refused(f"a key is a {type(key).__name__}")
            target[key] = value

    def load_setitem(self) -> None:
        """Sets one item of a dictionary."""
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        """Sets several items of a dictionary."""
        items = self.pop_mark()
        self._set_items(self.stack[-1], items)

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems

    def find_class(self, module: str, name: str) -> Any:
        """Resolves the few names that are allowed, to new objects for each file."""
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return name
        known = {
            ("collections", "OrderedDict"): lambda: collections.OrderedDict(),
            ("torch._utils", "_rebuild_tensor_v2"): lambda *given: _Tensor(*given[:4]),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            ("torch", "Size"): tuple,
        }
        if (module, name) not in known:
            raise _Refused(f"it asks for {module}.{name}, which is refused")
        return known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """Returns the storage that a tensor refers to."""
        kind, dtype, key, _, _, *view = pid
        # Types are checked first, since printing a crafted object can take forever.
        if {type(kind), type(dtype), type(key)} != {str} or any(view):
            raise _Refused("a storage is not described as PyTorch does it")
        if kind != "storage":
            raise _Refused(f"unknown kind of storage {kind[:80]!r}")
        return _Storage(key, _DTYPES[dtype])


def _tensors(tree: Any) -> dict[str, _Tensor]:
    if not isinstance(tree, dict) or not tree:
        raise _Refused(f"it holds a {type(tree).__name__}, not tensors by name")
    for name, leaf in tree.items():
        if type(name) is not str or not isinstance(leaf, _Tensor):
            shown = repr(name[:80]) if type(name) is str else type(name).__name__
            raise _Refused(f"entry {shown} is not a tensor")
    return tree


def _resolve(tree: Any, storages: dict[str, bytes]) -> dict[str, np.ndarray]:
    arrays = {}
    left = _LARGEST_SHARE * sum(map(len, storages.values()))
    for name, leaf in _tensors(tree).items():
        arrays[name] = _array(leaf, storages, left)
        left -= arrays[name].nbytes
    return arrays


def _array(tensor: _Tensor, storages: dict[str, bytes], most: int) -> np.ndarray:
    """Copies a view, which must lie within its storage and within `most` bytes."""
    storage = tensor.storage
    numbers = np.frombuffer(storages[storage.key], storage.dtype)
    shape, strides, offset = tensor.shape, tensor.strides, tensor.offset
    if {type(shape), type(strides)} != {tuple} or any(
        type(number) is not int for number in (offset, *shape, *strides)
    ):
        raise _Refused("a tensor is not described as PyTorch does it")
    size = math.prod(shape)
    if size * storage.dtype.itemsize > most:
        raise _Refused("its tensors share too few numbers")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if (
        min((offset, *shape, *strides)) < 0
        or size > len(numbers)
        or (size and last >= len(numbers))
    ):
        raise _Refused(f"a tensor of shape {shape} reaches beyond its storage")
    if not size:
        return np.empty(shape, storage.dtype)
    view = np.lib.stride_tricks.as_strided(
        numbers[offset:], shape, [step * storage.dtype.itemsize for step in strides]
    )
    return view.copy()
