"""CIFAR-10 (Krizhevsky 2009), read from its published Python archive."""

import contextlib
import gzip
import io
import pathlib
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jaxtyping import UInt8

from jcm.data import builder
from jcm.runtime import budget, download, hashes, pickles
from jcm.runtime.errors import JcmError, one_line
from jcm.runtime.paths import resolved

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"
REMEDY = f"download {URL} and pass --config.data.path=<that file>"

# A batch has 31 MB, and all files of the archive 186 MB.
_BATCH_BYTES, _UNPACKED_BYTES = 64 * 2**20, 256 * 2**20
_TAR_BLOCK, _GZIP = 512, b"\x1f\x8b"
# The longest name of a dtype, such as "uint8".
_LONGEST_DTYPE = 20

SPLITS = {
    "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
    "test": ("test_batch",),
}


class Cifar10(builder.ImageBuilder):
    """60,000 images of 32x32x3 in 10 classes, with the splits train and test.

    `config.data.path` may name the archive or the folder extracted from it, whose hash
    is not checked. Without a path the archive is downloaded and its hash is checked.
    """

    image_shape = (32, 32, 3)
    class_names = tuple(
        "airplane automobile bird cat deer dog frog horse ship truck".split()
    )

    @classmethod
    def source(cls, config_data: Any) -> tfds.core.BuilderConfig | None:
        """Describes the present archive or folder; None means the download."""
        if not config_data.path:
            return None
        path = resolved(config_data.path)
        if not path.exists():
            raise JcmError(f"config.data.path={path} does not exist: {REMEDY}")
        stat = path.stat()
        key = builder.source_name(str(path), stat.st_size, stat.st_mtime_ns)
        return tfds.core.BuilderConfig(name=key, description=str(path))

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Any]:
        if self.builder_config:
            path = pathlib.Path(self.builder_config.description)
            if path.is_file() and hashes.known(path, "md5") != MD5:
                logging.warning(
                    "the MD5 of %s is not that of the published archive of CIFAR-10",
                    path,
                )
        else:
            folder = pathlib.Path(self.data_dir_root) / "downloads"
            target = folder / URL.rpartition("/")[2]
            path = download.fetch(URL, target, f"md5:{MD5}", REMEDY)
        return {
            split: self._generate_examples(split, _examples(path, names))
            for split, names in SPLITS.items()
        }


def _examples(
    path: pathlib.Path, names: tuple[str, ...]
) -> Iterator[tuple[UInt8[np.ndarray, "32 32 3"], int]]:
    for name in names:
        try:
            images, labels = _batch(path, name)
        # Unpickling a broken file can raise anything, and the remedy is the same.
        except Exception as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise JcmError(
                f"{path} is not a complete CIFAR-10 Python archive "
                f"({name}: {reason}): {REMEDY}"
            ) from error
        yield from zip(images, labels, strict=True)


def _batch(
    path: pathlib.Path, name: str
) -> tuple[UInt8[np.ndarray, "n 32 32 3"], list[int]]:
    if path.is_dir():
        (found,) = path.rglob(name)
        content = budget.regular_file(found, _BATCH_BYTES).read_bytes()
    else:
        content = _member(path, name)
    batch = unpickled(content)
    data, labels = batch[b"data"].pixels(), batch[b"labels"]
    # Other objects may take long to print, compare or convert.
    if type(labels) is not list or not all(type(label) is int for label in labels):
        raise ValueError("labels that are not whole numbers")
    if not set(labels) <= set(range(10)):
        raise ValueError("labels that are not from 0 to 9")
    images = data.reshape(len(labels), 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels


def _member(path: pathlib.Path, name: str) -> bytes:
    """Returns the content of a file of the archive, which may be a bomb.

    Only plain headers are read. `tarfile.open` would take what an archive states of
    long names and other fields into memory, however much this is.

    Raises:
      KeyError: if there is no such file.
      budget.Refused: if the files are larger than those of CIFAR-10.
      Exception: if the archive is damaged.
    """
    file = budget.regular_file(path, _UNPACKED_BYTES)
    left = _UNPACKED_BYTES
    with contextlib.ExitStack() as stack:
        stream: Any = stack.enter_context(file.open("rb"))
        if stream.peek(2)[:2] == _GZIP:
            stream = stack.enter_context(gzip.GzipFile(fileobj=stream))
        # The search stops at the wanted file, since decompression is slow.
        while (header := stream.read(_TAR_BLOCK)).strip(b"\0"):
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            padded = -(-member.size // _TAR_BLOCK) * _TAR_BLOCK
            left -= _TAR_BLOCK + padded
            if not 0 <= member.size <= _BATCH_BYTES or left < 0:
                raise budget.Refused("it has larger files than CIFAR-10")
            content = stream.read(padded)
            if len(content) < padded:
                raise EOFError("the archive is not complete")
            if member.isreg() and member.name.endswith(f"/{name}"):
                return content[: member.size]
    raise KeyError(f"no {name} in the archive")


class _Dtype:
    """The dtype of an array, in place of numpy's."""

    def __init__(self, name: Any, *_: Any):
        # Printing or comparing another object may take long.
        if not isinstance(name, str | bytes) or len(name) > _LONGEST_DTYPE:
            raise budget.Refused("the type of its numbers is not a name")
        self.name = name.decode("latin1") if isinstance(name, bytes) else name

    def set_state(self, state: Any) -> None:
        """Ignores the byte order, which single bytes do not have."""


class _Array:
    """An array, in place of numpy's; its state is its shape, dtype and bytes."""

    def __init__(self, *_: Any):
        self._state: Any = None

    def set_state(self, state: Any) -> None:
        """Takes the state."""
        self._state = state

    def pixels(self) -> UInt8[np.ndarray, "..."]:
        """Returns the array.

        Raises:
          ValueError: if it has other numbers than bytes.
        """
        _, shape, dtype, in_fortran_order, content = self._state
        if type(dtype) is not _Dtype or in_fortran_order:
            raise ValueError("pixels in another order")
        if dtype.name not in ("u1", "uint8"):
            raise ValueError(f"pixels of type {dtype.name}")
        return np.frombuffer(content, np.uint8).reshape(shape)


def unpickled(content: bytes) -> Any:
    """Reads plain containers and arrays, and calls nothing.

    Raises:
      budget.Refused: if the content names anything else.
    """
    left = len(content)

    def encode(text: str, encoding: str) -> bytes:
        """Python 3 writes bytes for Python 2 by a call of this function."""
        nonlocal left
        if type(text) is not str:
            raise budget.Refused("it encodes what is no text")
        left -= len(text)
        if left < 0:
            raise budget.Refused("it repeats its texts")
        return text.encode("latin1")

    calls: pickles.Calls = {
        pickles.Name("numpy", "dtype"): _Dtype,
        pickles.Name("numpy", "ndarray"): None,
        pickles.Name("numpy.core.multiarray", "_reconstruct"): _Array,
        pickles.Name("numpy._core.multiarray", "_reconstruct"): _Array,
        pickles.Name("_codecs", "encode"): encode,
    }
    return pickles.read(io.BytesIO(content), calls)
