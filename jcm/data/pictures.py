"""Picture files and Pillow images, converted to small square arrays of pixels."""

import os
import pathlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"})


def find(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the picture files in and below a folder, in any order.

    Hidden files and folders are skipped.

    Args:
      folder: the folder; symbolic links in it are followed.
    """
    for place, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            path = pathlib.Path(place, name)
            if not name.startswith(".") and path.suffix.lower() in SUFFIXES:
                yield path


def read(
    path: pathlib.Path, size: int, channels: int
) -> UInt8[np.ndarray, "size size channels"]:
    """Reads a picture file and converts it with `to_square`.

    Args:
      path: a file that Pillow can decode; of an animation the first frame is used.
      size: height and width of the result.
      channels: 3 for colour (grey is repeated), 1 for grey (luma of ITU-R 601).

    Raises:
      Exception: whatever Pillow raises for a broken file, which can be of many types.
    """
    with Image.open(path) as file:
        return to_square(file, size, channels)


def to_square(
    image: Image.Image, size: int, channels: int
) -> UInt8[np.ndarray, "size size channels"]:
    """Crops the central square of an image and resizes it, upright and on white.

    Pillow's box filter is used to shrink (docs/data.md compares other data sets), and
    bicubic interpolation to enlarge.

    Args:
      image: an image of any mode that Pillow knows.
      size: height and width of the result.
      channels: 3 for colour (grey is repeated), 1 for grey (luma of ITU-R 601).
    """
    image = to_rgb_or_grey(image, channels)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.resize(
        (size, size),
        Image.Resampling.BOX if side >= size else Image.Resampling.BICUBIC,
        box=(left, top, left + side, top + side),
    )
    return np.asarray(image).reshape(size, size, channels)


def to_rgb_or_grey(image: Image.Image, channels: int) -> Image.Image:
    """Converts an image to 8 bits in colour or grey, upright and on white.

    Args:
      image: an image of any mode that Pillow knows.
      channels: 3 for colour (grey is repeated), 1 for grey (luma of ITU-R 601).
    """
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        image = Image.fromarray(_to_uint8(np.asarray(image), image.mode))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB" if channels == 3 else "L")


def _to_uint8(x: Shaped[np.ndarray, "h w"], mode: str) -> UInt8[np.ndarray, "h w"]:
    """Scales grey values of more than 8 bits, which Pillow would clip.

    Modes I and F have no fixed range. Their largest value decides whether they are
    taken for 16 bits, 8 bits or fractions.
    """
    largest = 65535 if mode.startswith("I;16") else x.max()
    scale = 1 / 257 if largest > 255 else 255 if mode == "F" and largest <= 1 else 1
    return np.clip(np.rint(x * scale), 0, 255).astype(np.uint8)
