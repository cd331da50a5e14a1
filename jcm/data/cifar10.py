"""CIFAR-10 (Krizhevsky 2009), read from its published Python archive."""

import pathlib
import pickle
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jaxtyping import UInt8

from jcm.data import builder
from jcm.runtime import download, hashes
from jcm.runtime.errors import JcmError, one_line
from jcm.runtime.paths import expanded

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"
REMEDY = f"download {URL} and pass --config.data.path=<that file>"

# The private function of numpy that pickled arrays name.
_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]

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
        path = expanded(config_data.path).resolve()
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
        with found.open("rb") as file:
            batch = DataUnpickler(file, encoding="bytes").load()
    else:
        with tarfile.open(path) as archive:
            # The search stops at the wanted member, since decompression is slow.
            member = next((m for m in archive if m.name.endswith("/" + name)), None)
            if member is None:
                raise KeyError(f"no {name} in the archive")
            content = archive.extractfile(member)
            if content is None:
                raise KeyError(f"{name} in the archive is not a file")
            batch = DataUnpickler(content, encoding="bytes").load()
    data, labels = batch[b"data"], [int(label) for label in batch[b"labels"]]
    if data.dtype != np.uint8 or not set(labels) <= set(range(10)):
        raise ValueError(f"{data.dtype} pixels, labels up to {max(labels)}")
    images = data.reshape(len(labels), 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels


class DataUnpickler(pickle.Unpickler):
    """Reads plain containers and numpy arrays, and calls nothing else.

    The constructors of numpy are looked up by name in this class, so that a file cannot
    import anything. Python 3 writes bytes for Python 2 by a call of `_codecs.encode`.
    """

    _ALLOWED = {
        ("numpy", "dtype"): np.dtype,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
    }

    def find_class(self, module: str, name: str) -> Any:
        """Resolves the few names that are allowed.

        Raises:
          pickle.UnpicklingError: for any other name.
        """
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"refusing to load {module}.{name}")
        return self._ALLOWED[module, name]
