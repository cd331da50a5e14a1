"""One picture file of any kind -> one small square of pixels."""

import os
import pathlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"})


def find(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The pictures in a folder and below it, but for what is hidden, in any order.

    Args:
      folder: links in it are followed.
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
    """Reads a picture and makes a `square` of it; of an animation the first frame.

    Args:
      path: a file that Pillow can decode.
      size: height and width of the result.
      channels: 3 for colour (grey is repeated), 1 for grey (luma of ITU-R 601).

    Raises:
      Exception: whatever Pillow raises for a broken file; the kinds are many.
    """
    with Image.open(path) as file:
        return square(file, size, channels)


def square(
    image: Image.Image, size: int, channels: int
) -> UInt8[np.ndarray, "size size channels"]:
    """A picture upright, on white, cut to its central square, resized.

    Shrinking is by Pillow's box filter (docs/data.md compares other sets); a picture
    smaller than `size` is enlarged bicubically.

    Args:
      image: of any mode that Pillow knows.
      size: height and width of the result.
      channels: 3 for colour (grey is repeated), 1 for grey (luma of ITU-R 601).
    """
    image = upright(image, channels)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.resize(
        (size, size),
        Image.Resampling.BOX if side >= size else Image.Resampling.BICUBIC,
        box=(left, top, left + side, top + side),
    )
    return np.asarray(image).reshape(size, size, channels)


def upright(image: Image.Image, channels: int) -> Image.Image:
    """A picture of 8 bits in colour or grey: turned upright, and on white.

    Args:
      image: of any mode that Pillow knows.
      channels: 3 for colour (grey is repeated), 1 for grey (luma of ITU-R 601).
    """
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        image = Image.fromarray(_eight_bits(np.asarray(image), image.mode))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB" if channels == 3 else "L")


def _eight_bits(x: Shaped[np.ndarray, "h w"], mode: str) -> UInt8[np.ndarray, "h w"]:
    """More bits of grey, which Pillow would clip rather than scale.

    Modes without a fixed range, I and F, are taken for 16 bits, 8, or fractions by
    their largest value.
    """
    largest = 65535 if mode.startswith("I;16") else x.max()
    scale = 1 / 257 if largest > 255 else 255 if mode == "F" and largest <= 1 else 1
    return np.clip(np.rint(x * scale), 0, 255).astype(np.uint8)
