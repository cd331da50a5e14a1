"""Folders of picture files as data sets, with sub-folders as classes."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jaxtyping import UInt8

from jcm.data import builder, folders, pictures
from jcm.runtime.errors import JcmError

# An error names at most this many broken files.
_NAMED_AT_MOST = 3


@dataclasses.dataclass
class FolderConfig(tfds.core.BuilderConfig):
    """The present content of a folder; `name` changes whenever a picture changes.

    Attributes:
      image_size: height and width of the images.
      channels: 1 for grey or 3 for colour.
      skip_broken: whether files that cannot be read are skipped.
      class_names: names of the classes.
      files: each picture file with the label of its class.
    """

    image_size: int = 0
    channels: int = 0
    skip_broken: bool = False
    class_names: tuple[str, ...] = ()
    files: list[tuple[pathlib.Path, int]] = dataclasses.field(default_factory=list)


class ImageFolder(builder.ImageBuilder):
    """The pictures of `config.data.path`, resized to `config.data.image_size`.

    Each first-level sub-folder is a class of the pictures in and below it. A folder
    without sub-folders has one class, which has the name of the folder. Hidden files
    and folders are skipped. `pictures.read` converts a file to pixels. The only split
    is train.
    """

    @classmethod
    def source(cls, config_data: Any) -> FolderConfig:
        """Lists the folder, and describes what its pictures are converted to."""
        if not config_data.path:
            raise JcmError(
                "image_folder needs a folder: pass --config.data.path=<folder>"
            )
        if config_data.image_size < 1 or config_data.channels not in (1, 3):
            raise JcmError(
                f"config.data.image_size={config_data.image_size} and channels="
                f"{config_data.channels}: pass a size of at least 1, channels 1 or 3"
            )
        root = pathlib.Path(config_data.path).expanduser().resolve()
        listing = _listing(root)
        class_names, files = _classes(root, [path for path, *_ in listing])
        options = {
            "image_size": config_data.image_size,
            "channels": config_data.channels,
            "skip_broken": config_data.skip_broken,
        }
        return FolderConfig(
            name=builder.source_name(str(root), listing, options),
            description=str(root),
            class_names=class_names,
            files=files,
            **options,
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        config = self.builder_config
        return (config.image_size, config.image_size, config.channels)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The sub-folders in alphabetical order."""
        return self.builder_config.class_names

    def _what(self) -> str:
        config = self.builder_config
        return f"{len(config.files)} pictures of {config.description}"

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Any]:
        readable = _readable(self.builder_config)
        return {"train": self._generate_examples("train", readable)}


def _listing(root: pathlib.Path) -> list[tuple[str, int, int]]:
    """Lists the path, size in bytes and time of change of every picture, sorted."""
    if not root.is_dir():
        raise JcmError(f"config.data.path={root} is not a folder: name one that exists")
    listing = []
    for path in folders.find(root):
        # A broken link is listed too, and reported later as a file that cannot be read.
        stat = os.stat(path, follow_symlinks=os.path.exists(path))
        relative = os.path.relpath(path, root)
        listing.append((relative, stat.st_size, stat.st_mtime_ns))
    if not listing:
        raise JcmError(
            f"there are no pictures in {root}: name a folder with .png, .jpg or other"
            " picture files"
        )
    return sorted(listing)


def _classes(
    root: pathlib.Path, paths: list[str]
) -> tuple[tuple[str, ...], list[tuple[pathlib.Path, int]]]:
    """Returns the names of the classes, and every path with the label of its class."""
    parts = [pathlib.PurePath(path).parts for path in paths]
    names = sorted({first for first, *rest in parts if rest}) or [root.name]
    loose = [first for first, *rest in parts if not rest]
    if loose and len(loose) < len(paths):
        raise JcmError(
            f"{root} has sub-folders, which are classes, and {len(loose)} pictures"
            f" outside them, such as {loose[0]}: move these into a sub-folder"
        )
    number = {name: i for i, name in enumerate(names)}
    files = [(root.joinpath(*part), number.get(part[0], 0)) for part in parts]
    return tuple(names), files


def _readable(
    config: FolderConfig,
) -> Iterator[tuple[UInt8[np.ndarray, "h w c"], int]]:
    """Yields all pictures that can be read, and reports the others at the end.

    Raises:
      JcmError: if pictures cannot be read and `config.skip_broken` is not set, or none
        can be read.
    """

    def read(file: tuple[pathlib.Path, int]) -> tuple[pathlib.Path, int, Any]:
        path, label = file
        try:
            return path, label, pictures.read(path, config.image_size, config.channels)
        # Pillow raises many types of exceptions for broken files.
        except Exception as error:
            return path, label, error

    # Pillow releases the GIL while it decodes, so that threads use all cores.
    threads = os.cpu_count() or 1
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=8 * threads)
    reader = grain.MapDataset.source(config.files).map(read).to_iter_dataset(options)
    broken = []
    for path, label, image in reader:
        if isinstance(image, Exception):
            logging.warning("cannot read %s: %s", path, image)
            broken.append(str(path))
        else:
            yield image, label
    if not broken:
        return
    some = ", ".join(broken[:_NAMED_AT_MOST])
    count = f"{len(broken)} of {len(config.files)} pictures cannot be read"
    if len(broken) == len(config.files):
        raise JcmError(
            f"{count} ({some}): set config.data.path to a folder of valid pictures"
        )
    if not config.skip_broken:
        raise JcmError(
            f"{count} ({some}): delete them or pass --config.data.skip_broken=True"
        )
    logging.warning("%s and are skipped (%s)", count, some)
