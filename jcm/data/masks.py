"""Masks of inpainting: arrays, or pictures that are painted white.

A pixel of the model is replaced if the mask is painted on anywhere in it, however thin
the stroke is. The command, Python and the page follow this rule.
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from jcm.data import pictures
from jcm.runtime.arrays import AnyArray
from jcm.runtime.errors import JcmError

# The largest difference in aspect ratio between a mask and a picture.
_SAME_SHAPE = 0.02
# Darker values are not painted on: JPEG leaves them beside strokes.
_PAINTED = 32

Size = tuple[int, int]
"""Width and height of a picture as it is seen."""


def as_mask(
    mask: AnyArray | Image.Image, sizes: Sequence[Size | None], size: int
) -> Float[np.ndarray, "m h w 1"]:
    """Converts a mask to a float32 array from 0 (keep) to 1 (replace).

    Args:
      mask: an array from 0 to 1 of shape (h, w), (n, h, w) or (n, h, w, 1), or a
        picture that `of_picture` takes.
      sizes: of each of the n images; None for an array, which is as the model takes it.
      size: height and width of the images that the model takes.

    Returns:
      One mask for all images (m = 1) or one for each (m = n).

    Raises:
      JcmError: if the shape or a value is wrong, the picture does not fit or is
        transparent, or a mask is zero everywhere.
    """
    if isinstance(mask, str | os.PathLike):
        raise JcmError(f"{mask!r} is a path: pass PIL.Image.open({str(mask)!r})")
    if isinstance(mask, Image.Image):
        named = {f"image {i}": each for i, each in enumerate(sizes)}
        return of_picture(mask, size, "the mask", named)[None, ..., None]
    free = np.asarray(mask, np.float32)
    free = free[..., 0] if free.ndim == 4 and free.shape[3] == 1 else free
    whole, count = (size, size), len(sizes)
    if free.shape not in (whole, (count, *whole)):
        raise JcmError(
            f"the mask has shape {free.shape}: pass {whole}, or {(count, *whole)} for"
            f" {count} images, or a Pillow image, which is resized"
        )
    if not (free.min() >= 0 and free.max() <= 1):
        raise JcmError(
            "the mask has values outside [0, 1]: use 0 to keep a pixel and 1 to"
            " replace it"
        )
    if not free.reshape(-1, size * size).any(axis=1).all():
        raise JcmError("the mask is zero everywhere: mark the pixels to replace with 1")
    return free.reshape(-1, *whole, 1)


def of_picture(
    mask: Image.Image, size: int, name: str, sizes: Mapping[str, Size | None]
) -> Float[np.ndarray, "size size"]:
    """Returns 1 for each pixel of the model that a picture is painted on.

    Args:
      mask: white, or any other colour, where pictures are replaced, and black where
        they are kept. It is square or has the aspect ratio of the pictures, as they are
        seen. Its central square is used.
      size: height and width of the result.
      name: of the mask, for errors.
      sizes: those of the pictures by name; None for the central square of a picture.

    Raises:
      JcmError: if the mask is transparent, has another aspect ratio than a picture, or
        if no pixel is painted on.
    """
    mask = pictures.as_seen(mask)
    # A channel that is opaque everywhere says nothing.
    if mask.has_transparency_data and np.asarray(mask.getchannel("A")).min() < 255:
        raise JcmError(
            f"{name} has transparency: use black to keep pixels and white to replace"
            " them"
        )
    width, height = mask.size
    if width != height:
        for other, theirs in sizes.items():
            _check_same_shape(name, mask.size, other, theirs)
    values = np.asarray(mask.convert("RGB"))
    # A pixel of any colour is painted on.
    painted = values.max(axis=2) >= _PAINTED
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    inside = painted[top : top + side, left : left + side]
    if not painted.any() and values.any():
        raise JcmError(
            f"{name} is almost black, with values up to {values.max()} of 255: paint"
            " white where the picture is replaced"
        )
    if not inside.any():
        where = " in its central square" if painted.any() else ""
        raise JcmError(
            f"{name} is black everywhere{where}: paint white where the picture is"
            " replaced"
        )
    return _any_of_rows(_any_of_rows(inside, size).T, size).T.astype(np.float32)


def _check_same_shape(name: str, mask: Size, other: str, theirs: Size | None) -> None:
    """Raises JcmError if a mask has another aspect ratio than a picture."""
    width, height = mask
    if theirs is None:
        raise JcmError(
            f"{name} of {width}x{height} is not square, but {other} is: pass the"
            " pictures as Pillow images, or a square mask"
        )
    if abs(theirs[0] / theirs[1] - width / height) > _SAME_SHAPE:
        raise JcmError(
            f"{name} of {width}x{height} has another aspect ratio than {other} of"
            f" {theirs[0]}x{theirs[1]}: use a mask of the same aspect ratio, or a"
            " square one for the central square"
        )


def _any_of_rows(painted: Bool[np.ndarray, "h w"], rows: int) -> np.ndarray:
    """Returns for each of `rows` parts of the height which columns are painted on."""
    height = len(painted)
    first = [i * height // rows for i in range(rows)]
    end = [-(-i * height // rows) for i in range(1, rows + 1)]
    parts = zip(first, end, strict=True)
    return np.stack([painted[a:b].any(axis=0) for a, b in parts])
