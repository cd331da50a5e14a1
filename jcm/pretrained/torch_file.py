"""PyTorch weight files, read without PyTorch and without running what they name.

A `.pt` or `.pth` file holds a pickle that describes tensors, and their bytes. PyTorch
1.6 and later puts them into a zip archive, while earlier versions write one after the
other. `torch_pickle` reads the pickle.
"""

import io
import math
import os
import pathlib
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jcm.pretrained import torch_pickle
from jcm.pretrained.torch_pickle import Tensor
from jcm.runtime import archives, budget
from jcm.runtime.errors import shown

# The first number of a file in the older format, and the version that follows it.
_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001


class _Storage(NamedTuple):
    """The bytes of a storage, which are read when they are needed."""

    size: int
    read: Callable[[], bytes]


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
    remedy = "download it again, or save only the state dict with torch.save"
    with budget.opened(path, "a complete PyTorch file of weights", remedy) as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            return _read_stream(file)
        with archives.opened(file) as archive:
            archives.check_plain(archive)
            return _read_zip(archive)


def _read_zip(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    members = {member.filename: member for member in archive.infolist()}
    found = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
    if len(found) != 1:
        raise budget.Refused("the archive has no data.pkl")
    folder = found[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in members:
        raise budget.Refused("it is a TorchScript program")
    order = members.get(f"{folder}byteorder")
    if order and (order.file_size > 9 or archive.read(order) != b"little"):
        raise budget.Refused("its byte order is not little-endian")
    if members[found[0]].file_size > budget.PICKLE_BYTES:
        raise budget.Refused("the description of the tensors is too long")
    tree = torch_pickle.read(io.BytesIO(archive.read(found[0])))
    prefix = f"{folder}data/"
    storages = {
        name.removeprefix(prefix): _Storage(member.file_size, _reader(archive, member))
        for name, member in members.items()
        if name.startswith(prefix)
    }
    return _resolve(tree, storages)


def _reader(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Callable[[], bytes]:
    return lambda: archive.read(member)


def _read_stream(file: io.BufferedReader) -> dict[str, np.ndarray]:
    start = io.BytesIO(file.read(budget.PICKLE_BYTES))
    magic, version = torch_pickle.read(start), torch_pickle.read(start)
    if magic != _MAGIC or version != _VERSION:
        raise budget.Refused(
            "it is neither a zip archive nor in PyTorch's older format"
        )
    system, tree, keys = (torch_pickle.read(start) for _ in range(3))
    if type(system) is not dict or system.get("little_endian") is not True:
        raise budget.Refused("its byte order is not little-endian")
    dtypes = {leaf.storage.key: leaf.storage.dtype for leaf in _tensors(tree).values()}
    if type(keys) is not list:
        raise budget.Refused("its storages are not listed")
    storages, end = {}, os.fstat(file.fileno()).st_size
    file.seek(start.tell())
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        # The dtype, and so the size, of a storage is known only from its tensors.
        if type(key) is not str or key not in dtypes:
            raise budget.Refused("a storage belongs to no tensor")
        size, begin = count * dtypes[key].itemsize, file.tell()
        if not 0 <= size <= end - begin:
            raise budget.Refused(
                f"{size} bytes are announced, but there are {end - begin}"
            )
        storages[key] = _Storage(size, _part(file, begin, size))
        file.seek(begin + size)
    return _resolve(tree, storages)


def _part(file: io.BufferedReader, begin: int, size: int) -> Callable[[], bytes]:
    def read() -> bytes:
        file.seek(begin)
        return file.read(size)

    return read


def _tensors(tree: Any) -> dict[str, Tensor]:
    if type(tree) is not dict or not tree:
        raise budget.Refused(f"it holds a {type(tree).__name__}, not tensors by name")
    if len(tree) > budget.TENSORS:
        raise budget.Refused(f"it has more than {budget.TENSORS:,} entries")
    for name, leaf in tree.items():
        if type(name) is not str or not isinstance(leaf, Tensor):
            raise budget.Refused(f"entry {shown(name)} is not a tensor")
    return tree


def _resolve(tree: Any, storages: Mapping[str, _Storage]) -> dict[str, np.ndarray]:
    """Returns the arrays of all tensors; one storage after the other is in memory."""
    tensors = _tensors(tree)
    by_storage: dict[str, list[str]] = {}
    for name, leaf in tensors.items():
        if leaf.storage.key not in storages:
            raise budget.Refused(f"the storage of {shown(name)} is missing")
        _check_view(name, leaf, storages[leaf.storage.key].size)
        by_storage.setdefault(leaf.storage.key, []).append(name)
    # Views may share a storage, but each is copied here.
    total = sum(
        math.prod(leaf.shape) * leaf.storage.dtype.itemsize for leaf in tensors.values()
    )
    most = sum(each.size for each in storages.values()) + budget.SHARED_BYTES
    if total > most:
        raise budget.Refused("its tensors share too few numbers")
    arrays = {}
    for key, names in by_storage.items():
        content = storages[key].read()
        for name in names:
            arrays[name] = _array(tensors[name], content)
    return {name: arrays[name] for name in tensors}


def _check_view(name: str, tensor: Tensor, size: int) -> None:
    """Checks that a view lies within its storage of `size` bytes, without reading it.

    Raises:
      budget.Refused: if it does not.
    """
    count, numbers = math.prod(tensor.shape), size // tensor.storage.dtype.itemsize
    last = tensor.offset + sum(
        (length - 1) * step
        for length, step in zip(tensor.shape, tensor.strides, strict=True)
    )
    if count > numbers or (count and last >= numbers) or tensor.offset > numbers:
        raise budget.Refused(f"tensor {shown(name)} reaches beyond its storage")


def _array(tensor: Tensor, content: bytes) -> np.ndarray:
    """Copies a view that `_check_view` has checked."""
    dtype, shape = tensor.storage.dtype, tensor.shape
    if not math.prod(shape):
        return np.empty(shape, dtype)
    numbers = np.frombuffer(content, dtype, offset=tensor.offset * dtype.itemsize)
    view = np.lib.stride_tricks.as_strided(
        numbers, shape, [step * dtype.itemsize for step in tensor.strides]
    )
    return view.copy()
