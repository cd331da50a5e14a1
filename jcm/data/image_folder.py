"""Any folder of pictures as a data set; its sub-folders are the classes."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator

import grain
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jaxtyping import UInt8

from jcm.data import builder, pictures
from jcm.runtime.errors import JcmError

_NAMED_AT_MOST = 3


@dataclasses.dataclass
class FolderConfig(tfds.core.BuilderConfig):
    """A folder as it is now; `name` changes when any of its pictures does."""

    image_size: int = 0
    channels: int = 0
    skip_broken: bool = False
    class_names: tuple[str, ...] = ()
    files: list[tuple[pathlib.Path, int]] = dataclasses.field(default_factory=list)


class ImageFolder(builder.PictureBuilder, skip_registration=True):
    """Pictures of `config.data.path`, at `config.data.image_size`; one split, train.

    All pictures below a first-level sub-folder bear its name as label; without
    sub-folders all are of one class, named after the folder. Hidden files and folders
    are passed over. `pictures.read` says how a file becomes pixels.
    """

    @classmethod
    def settings(cls, config_data) -> FolderConfig:
        """The folder as it is now, and what to make of its pictures."""
        if not config_data.path:
            raise JcmError("image_folder needs the folder: --config.data.path=<folder>")
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
            name=builder.settings_key(str(root), listing, options),
            description=str(root),
            class_names=class_names,
            files=files,
            **options,
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        config = self.builder_config
        return (config.image_size, config.image_size, config.channels)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The sub-folders, sorted."""
        return self.builder_config.class_names

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        readable = _readable(self.builder_config)
        return {"train": self._generate_examples("train", readable)}


def _listing(root: pathlib.Path) -> list[tuple[str, int, int]]:
    """Path from the root, bytes and time of change of every picture, sorted."""
    if not root.is_dir():
        raise JcmError(f"config.data.path={root} is not a folder: name one that exists")
    listing = []
    for path in pictures.find(root):
        # A link to nothing is a picture that cannot be read.
        stat = os.stat(path, follow_symlinks=os.path.exists(path))
        relative = os.path.relpath(path, root)
        listing.append((relative, stat.st_size, stat.st_mtime_ns))
    if not listing:
        suffixes = " ".join(sorted(pictures.SUFFIXES))
        raise JcmError(f"no pictures in {root}: it should hold files ending {suffixes}")
    return sorted(listing)


def _classes(
    root: pathlib.Path, paths: list[str]
) -> tuple[tuple[str, ...], list[tuple[pathlib.Path, int]]]:
    """Names of the classes, and every picture with its class."""
    parts = [pathlib.PurePath(path).parts for path in paths]
    names = sorted({first for first, *rest in parts if rest}) or [root.name]
    loose = [first for first, *rest in parts if not rest]
    if loose and len(loose) < len(paths):
        raise JcmError(
            f"{root} holds sub-folders (classes) and {len(loose)} pictures outside "
            f"them, such as {loose[0]}: move these into a sub-folder"
        )
    number = {name: i for i, name in enumerate(names)}
    files = [(root.joinpath(*part), number.get(part[0], 0)) for part in parts]
    return tuple(names), files


def _readable(
    config: FolderConfig,
) -> Iterator[tuple[UInt8[np.ndarray, "h w c"], int]]:
    """Yields all pictures that can be read, then complains about the others.

    At the end rather than at the first, so that one complaint tells of all.
    """

    def read(file):
        path, label = file
        try:
            return path, label, pictures.read(path, config.image_size, config.channels)
        # Pillow's decoders raise a dozen kinds of exception for broken files.
        except Exception as error:
            return path, label, error

    # Pillow decodes without the GIL, so that threads use all cores.
    threads = os.cpu_count()
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
        raise JcmError(f"{count} ({some}): point config.data.path at sound pictures")
    if not config.skip_broken:
        raise JcmError(
            f"{count} ({some}): delete them or pass --config.data.skip_broken=True"
        )
    logging.warning("%s and were skipped (%s)", count, some)
