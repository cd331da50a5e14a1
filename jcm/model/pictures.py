"""Picture files, read as a model takes them: `jcm.open_pictures`."""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging
from jaxtyping import Float
from PIL import Image

from jcm.data import folders, images, pictures
from jcm.model.model import Model
from jcm.runtime import logs
from jcm.runtime.arguments import explained
from jcm.runtime.errors import JcmError, one_line

Path = str | os.PathLike


@explained
def open_pictures(
    paths: Path | Sequence[Path], model: Model, *, size: int | None = None
) -> Float[np.ndarray, "n h w c"]:
    """Reads picture files as images that a model can edit.

    Each picture is turned upright, placed on white, cut to its central square, resized,
    and converted to colour or grey. A line on each conversion is shown.

    Args:
      paths: a file, a folder, whose pictures are read in the order of their names, or
        a list of files.
      model: the model, which decides the size and the channels.
      size: height and width of the result; by default those of the model. Some edits
        take smaller images.

    Returns:
      Images in [-1, 1].

    Raises:
      JcmError: if a file cannot be read, or if there is none.
    """
    arch = model.denoiser.network.arch
    if isinstance(paths, str | os.PathLike):
        found = find(paths)
    else:
        found = [pathlib.Path(path) for path in paths]
    if not found:
        raise JcmError("there are no pictures: name at least one file")
    with logs.shown():
        pixels = [
            read(path, size or arch.image_size, arch.image_channels) for path in found
        ]
    return images.to_float(np.stack(pixels))


def find(place: Path) -> list[pathlib.Path]:
    """Returns the pictures in a folder, sorted by name, or the one picture.

    Raises:
      JcmError: if a folder has no pictures.
    """
    path = pathlib.Path(place).expanduser()
    if not path.is_dir():
        return [path]
    found = folders.scan(path, below=False)
    found.report(path)
    if not found.pictures:
        raise JcmError(f"no pictures in {path}: name another folder")
    return [path / name for name in found.pictures]


def read(path: pathlib.Path, size: int, channels: int) -> np.ndarray:
    """Reads the central square of a picture as uint8, and logs how it is converted.

    Raises:
      JcmError: if the file cannot be read.
    """
    with opened(path) as file:
        width, height = file.size
        colours = "grey" if file.mode[0] in "1LIF" else "colour"
        pixels = pictures.to_square(file, size, channels)
    wanted = "colour" if channels == 3 else "grey"
    if (width, height, colours) != (size, size, wanted):
        logging.info(
            "%s: %dx%d %s, %s to %dx%d %s",
            *(path, width, height, colours),
            "resized" if width == height else "cut and resized",
            *(size, size, wanted),
        )
    return pixels


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Image.Image]:
    """Decodes a picture file as it is seen, and explains any error within.

    Raises:
      JcmError: if the file cannot be read.
    """
    try:
        yield pictures.decode(path.expanduser())
    except FileNotFoundError:
        raise JcmError(f"there is no {path}: name a picture or a folder") from None
    except JcmError as error:
        raise JcmError(f"cannot read {path}: {error}") from error
    # Pillow's decoders raise many types of exception for broken files.
    except Exception as error:
        reason = one_line(error)
        raise JcmError(f"cannot read {path} ({reason}): use another picture") from error
