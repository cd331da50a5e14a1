"""Folders of picture files as data sets, with sub-folders as classes."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jaxtyping import UInt8

from jcm.data import builder, classes, folders, formats, pictures
from jcm.runtime import archives, budget
from jcm.runtime.errors import JcmError, one_line
from jcm.runtime.paths import resolved

# An error names at most this many files.
_NAMED_AT_MOST = 3
# The largest file of a zip file that is unpacked; the list of the classes of ImageNet
# has 50 MB.
_LARGEST_MEMBER = 256 * 2**20
# The directory of a zip file may have this part of its bytes, in addition to
# `budget.DIRECTORY_BYTES`: of a picture it has about 70 bytes.
_DIRECTORY_SHARE = 20


@dataclasses.dataclass
class FolderConfig(tfds.core.BuilderConfig):
    """The present content of a folder; `name` changes whenever a picture changes.

    Attributes:
      image_size: height and width of the images.
      channels: 1 for grey or 3 for colour.
      skip_broken: whether files that cannot be read are skipped.
      root: the folder, or a zip file.
      class_names: names of the classes.
      files: each picture, relative to the root, with the label of its class.
    """

    image_size: int = 0
    channels: int = 0
    skip_broken: bool = False
    root: pathlib.Path = pathlib.Path()
    class_names: tuple[str, ...] = ()
    files: list[tuple[str, int]] = dataclasses.field(default_factory=list)


class ImageFolder(builder.ImageBuilder):
    """The pictures of `config.data.path`, resized to `config.data.image_size`.

    Each first-level sub-folder is a class of the pictures in and below it. A folder
    without sub-folders has one class, which has the name of the folder. A file
    dataset.json of the tools of NVlabs in the folder names the classes instead; the zip
    files of these tools are read too. `pictures.read` converts a file to pixels. The
    only split is train.
    """

    in_order = True

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
        root = resolved(config_data.path)
        listing, content = _of_zip(root) if root.is_file() else _of_folder(root)
        paths = [path for path, *_ in listing]
        found = classes.of_list(root, content, paths) if content else None
        class_names, labels = found or classes.of_folders(root, paths)
        options = {
            "image_size": config_data.image_size,
            "channels": config_data.channels,
            "skip_broken": config_data.skip_broken,
        }
        return FolderConfig(
            name=builder.source_name(str(root), listing, class_names, labels, options),
            description=classes.readable(str(root)),
            root=root,
            class_names=class_names,
            files=list(zip(paths, labels, strict=True)),
            **options,
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        config = self.builder_config
        return (config.image_size, config.image_size, config.channels)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The sub-folders in the order of their numbers, or in alphabetical order."""
        return self.builder_config.class_names

    def _what(self) -> str:
        config = self.builder_config
        return f"{len(config.files)} pictures of {config.description}"

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Any]:
        readable = _readable(self.builder_config)
        return {"train": self._generate_examples("train", readable)}


# The path, the size in bytes, and what changes with the content of each picture.
Listing = list[tuple[str, int, int]]


def _of_folder(root: pathlib.Path) -> tuple[Listing, bytes]:
    """Lists the pictures of a folder; reads the list of their classes if it has one."""
    if not root.is_dir():
        raise JcmError(f"config.data.path={root} is not a folder: name one that exists")
    found = folders.scan(root)
    listing = []
    for path in found.pictures:
        full = root / path
        # A broken link is listed too, and reported later as a file that cannot be read.
        stat = os.stat(full, follow_symlinks=os.path.exists(full))
        listing.append((path, stat.st_size, stat.st_mtime_ns))
    content = classes.read_list(root, len(listing))
    if content:
        found.skipped -= {".json": 1}
    found.report(root)
    _check_not_empty(root, listing)
    return listing, content


def _of_zip(root: pathlib.Path) -> tuple[Listing, bytes]:
    """Lists the pictures of a zip file, and reads the list of their classes."""
    try:
        with _opened(root) as archive:
            # A name that is there twice stands for the last file.
            members = {each.filename: each for each in archive.infolist()}
            most = classes.most_bytes(len(members))
            content = _read_member(archive, classes.LISTED, most)
    # A file can be damaged in many ways, encrypted, or compressed in an unknown way.
    except Exception as error:
        raise JcmError(
            f"config.data.path={root} is not a folder, and not a zip file with"
            f" {classes.LISTED} ({one_line(error)}): unpack it and pass the folder"
        ) from error
    found, listing = folders.Found(), []
    for each in members.values():
        path = pathlib.PurePosixPath(each.filename)
        suffix = path.suffix.lower()
        if each.is_dir() or any(map(folders.is_left_behind, path.parts)):
            continue
        if suffix in formats.suffixes():
            listing.append((each.filename, each.file_size, each.CRC))
        elif each.filename != classes.LISTED:
            found.skipped[suffix] += 1
    found.report(root)
    _check_not_empty(root, listing)
    return sorted(listing), content


def _check_not_empty(root: pathlib.Path, listing: Listing) -> None:
    """Checks that there are pictures."""
    if not listing:
        raise JcmError(
            f"there are no pictures in {root}: name a folder with .png, .jpg or other"
            " picture files"
        )


@contextlib.contextmanager
def _opened(root: pathlib.Path) -> Iterator[zipfile.ZipFile]:
    """Opens a zip file, whose directory is a small part of it."""
    most = budget.DIRECTORY_BYTES + root.stat().st_size // _DIRECTORY_SHARE
    with budget.regular_file(root).open("rb") as file:
        with archives.opened(file, most) as archive:
            yield archive


@contextlib.contextmanager
def _reader(root: pathlib.Path) -> Iterator[Callable[[str], pathlib.Path | bytes]]:
    """Yields what turns the path of a picture into its file, or into its content."""
    if root.is_dir():
        yield root.joinpath
        return
    with _opened(root) as archive:  # threads may read it
        yield functools.partial(_read_member, archive)


def _read_member(archive: zipfile.ZipFile, name: str, most: int | None = None) -> bytes:
    """Reads a file of a zip file, whose size is checked before it is unpacked."""
    size = archive.getinfo(name).file_size
    most = min(most or _LARGEST_MEMBER, _LARGEST_MEMBER)
    if size > most:
        raise ValueError(f"{name} has {size:,} bytes, more than {most:,}")
    return archive.read(name)


def _read_all(config: FolderConfig) -> Iterator[tuple[str, int, Any, list[str]]]:
    """Reads all pictures.

    Yields:
      The path of each, its label, its pixels or the error, and what is ignored of it.
    """
    # Pillow releases the GIL while it decodes, so that threads use all cores.
    threads = os.cpu_count() or 1
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=8 * threads)
    with _reader(config.root) as content:

        def read(file: tuple[str, int]) -> tuple[str, int, Any, list[str]]:
            path, label = file
            ignored: list[str] = []
            try:
                image = pictures.read(
                    content(path), config.image_size, config.channels, ignored.append
                )
            # Pillow raises many types of exceptions for broken files.
            except Exception as error:
                return path, label, error, ignored
            return path, label, image, ignored

        files = grain.MapDataset.source(config.files)
        yield from files.map(read).to_iter_dataset(options)


def _readable(
    config: FolderConfig,
) -> Iterator[tuple[UInt8[np.ndarray, "h w c"], int]]:
    """Yields all pictures that can be read, and reports the others at the end.

    Raises:
      JcmError: if pictures cannot be read and `config.skip_broken` is not set, or none
        of a class can be read.
    """
    broken, odd = [], []
    found = np.zeros(len(config.class_names), int)
    for path, label, image, ignored in _read_all(config):
        odd += [f"{path}: {ignored[0]}"] if ignored else []
        if isinstance(image, Exception):
            logging.warning("cannot read %s: %s", config.root / path, image)
            broken.append(str(config.root / path))
        else:
            found[label] += 1
            yield image, label
    if odd:
        logging.warning(
            "ignored parts of %d of %d pictures (%s)",
            *(len(odd), len(config.files), ", ".join(odd[:_NAMED_AT_MOST])),
        )
    _check_broken(config, broken, found.tolist())


def _check_broken(
    config: FolderConfig, broken: Sequence[str], found: Sequence[int]
) -> None:
    """Checks that broken pictures may be skipped, and that no class becomes empty.

    Args:
      config: of the folder.
      broken: the pictures that cannot be read.
      found: the number of pictures of each class that were read.
    """
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
    lost = sorted({label for _, label in config.files if not found[label]})
    if lost:
        names = ", ".join(config.class_names[label] for label in lost[:_NAMED_AT_MOST])
        more = len(lost) - _NAMED_AT_MOST
        names += f" and of {more} other classes" if more > 0 else ""
        raise JcmError(
            f"no picture of the class {names} can be read ({some}): replace them, or"
            f" move them out of {config.root}"
        )
    logging.warning("%s and are skipped (%s)", count, some)
