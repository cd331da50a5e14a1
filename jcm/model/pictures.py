"""Picture files, read as a model takes them: `jcm.open_pictures`."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import logging
from jaxtyping import Float, UInt8
from PIL import Image

from jcm.data import folders, images, pictures
from jcm.data.masks import Size
from jcm.model.model import Model
from jcm.runtime import budget, logs
from jcm.runtime.arguments import explained, optional
from jcm.runtime.arrays import Whole
from jcm.runtime.errors import JcmError, one_line
from jcm.runtime.paths import expanded

Path = str | os.PathLike
# An error names at most this many broken files.
_NAMED = 5


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures from files, as a model takes them.

    Attributes:
      paths: the files that could be read.
      sizes: width and height of each picture, as it is seen.
      pixels: their central squares, resized.
    """

    paths: list[pathlib.Path]
    sizes: list[Size]
    pixels: UInt8[np.ndarray, "n h w c"]


@explained
def open_pictures(
    paths: Path | Sequence[Path],
    model: Model,
    *,
    size: Whole | None = None,
    skip_broken: bool = False,
) -> Float[np.ndarray, "n h w c"]:
    """Reads picture files as images that a model can edit.

    Each picture is turned upright, placed on white, cropped to its central square,
    resized, and converted to colour or grey. A line is logged for each conversion.

    Args:
      paths: a file, a folder, whose pictures are read in the order of their names, or
        a list of files.
      model: the model, which decides the size and the channels.
      size: height and width of the result; by default those of the model. Some edits
        take smaller images.
      skip_broken: whether files that cannot be read are skipped, with a warning.

    Returns:
      Images in [-1, 1].

    Raises:
      JcmError: if a file cannot be read, or if there is none.
    """
    arch, size = model.denoiser.network.arch, optional("size", size, least=1)
    if isinstance(paths, str | os.PathLike):
        files = find(paths)
    else:
        files = [expanded(path) for path in paths]
    with logs.shown():
        found = read_all(
            *(files, size or arch.image_size, arch.image_channels),
            skip_broken=skip_broken,
            remedy="delete them or pass skip_broken=True",
        )
    return images.to_float(found.pixels)


def find(place: Path) -> list[pathlib.Path]:
    """Returns the pictures in a folder, sorted by name, or the one picture.

    Raises:
      JcmError: if a folder has no pictures.
    """
    path = expanded(place)
    if not path.is_dir():
        return [path]
    found = folders.scan(path, below=False)
    found.report(path)
    if not found.pictures:
        raise JcmError(f"no pictures in {path}: name another folder")
    return [path / name for name in found.pictures]


def read_all(
    paths: Sequence[pathlib.Path],
    size: int,
    channels: int,
    *,
    skip_broken: bool,
    remedy: str,
) -> Pictures:
    """Reads the central squares of pictures, and logs how they are converted.

    Args:
      paths: of the files.
      size: height and width of the result.
      channels: 3 for colour, 1 for grey.
      skip_broken: whether files that cannot be read are skipped, with a warning.
      remedy: what to do about such files otherwise.

    Raises:
      JcmError: if a file is missing or cannot be read, or if there is none.
    """
    if not paths:
        raise JcmError("there are no pictures: name at least one file")
    good: list[pathlib.Path] = []
    sizes: list[Size] = []
    pixels: list[UInt8[np.ndarray, "h w c"]] = []
    broken: list[str] = []
    for path in paths:
        try:
            image = decoded(path)
        except _BrokenPicture as error:
            if len(paths) == 1:
                raise
            broken.append(str(path))
            logging.warning("%s", error)
        else:
            good.append(path)
            sizes.append(image.size)
            pixels.append(_converted(path, image, size, channels))
    if broken:
        count = f"{len(broken)} of {len(paths)} pictures cannot be read"
        some = ", ".join(broken[:_NAMED]) + ", ..." * (len(broken) > _NAMED)
        if not good:
            raise JcmError(f"{count} ({some}): use other pictures")
        if not skip_broken:
            raise JcmError(f"{count} ({some}): {remedy}")
        logging.warning("%s and are skipped", count)
    return Pictures(good, sizes, np.stack(pixels))


class _BrokenPicture(JcmError):
    """A file exists, but cannot be read as a picture."""


def decoded(path: pathlib.Path, most: int = budget.PICTURE_PIXELS) -> Image.Image:
    """Returns the picture in a file as it is seen; see `pictures.decode`.

    Args:
      path: of the file.
      most: the largest number of pixels.

    Raises:
      JcmError: if the file cannot be read, or if it is too large.
    """
    try:
        return pictures.decode(path, most=most)
    except FileNotFoundError:
        raise JcmError(f"there is no {path}: name a picture or a folder") from None
    except JcmError as error:
        raise _BrokenPicture(f"cannot read {path}: {error}") from error
    # Pillow's decoders raise many types of exception for broken files.
    except Exception as error:
        reason = one_line(error)
        raise _BrokenPicture(
            f"cannot read {path} ({reason}): use another picture"
        ) from error


def _converted(
    path: pathlib.Path, image: Image.Image, size: int, channels: int
) -> UInt8[np.ndarray, "size size channels"]:
    """Returns the central square of a picture, and logs how it is converted."""
    width, height = image.size
    colours = "grey" if image.mode[0] == "L" else "colour"
    wanted = "colour" if channels == 3 else "grey"
    if (width, height, colours) != (size, size, wanted):
        logging.info(
            "%s: %dx%d %s, %s to %dx%d %s",
            *(path, width, height, colours),
            "resized" if width == height else "cropped and resized",
            *(size, size, wanted),
        )
    return pictures.to_square(image, size, channels)
