"""What people hand in: images, masks and seeds of any kind."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float, Shaped
from PIL import Image

from jcm.data import images, pictures
from jcm.runtime.arrays import AnyArray
from jcm.runtime.errors import JcmError

# The sequence has arrays or Pillow's images.
Pictures = AnyArray | Image.Image | Sequence[Any]
# Floats beyond are no images in [-1, 1], nor what an edit gives, a little outside.
_LARGEST = 2.0


def as_images(
    given: Pictures, channels: int, size: int | None, *, noisy: bool = False
) -> Float[np.ndarray, "n h w c"]:
    """Any kind of images as an array in [-1, 1].

    Args:
      given: uint8 or float arrays (n, h, w, c) or (h, w, c), or Pillow's images, which
        are put on white and turned into colour or grey, with a note; or a sequence of
        single ones, all of one size.
      channels: 3 or 1; for 3, grey arrays are repeated.
      size: height and width; None for any.
      noisy: whether floats may lie far outside of [-1, 1].

    Raises:
      JcmError: for other types, shapes or ranges, and for numbers that are not finite.
    """
    if isinstance(given, str):
        raise JcmError(f"{given!r} is a text: open it, as by PIL.Image.open")
    if isinstance(given, Image.Image):
        given = [given]
    if isinstance(given, Sequence):
        arrays = [_array(image, channels) for image in given]
        if len({(array.shape, array.dtype.kind) for array in arrays}) > 1:
            raise JcmError("images of several sizes or types: give them one by one")
        given = np.stack(arrays) if arrays else np.zeros(0, np.uint8)
    x = np.asarray(given)
    if not x.size:
        raise JcmError("no images: give one at least")
    if x.ndim == 3:
        x = x[None]
    if x.ndim == 4 and x.shape[3] == 1 and channels == 3:
        x = np.repeat(x, 3, axis=3)
    fractions = x.dtype.kind == "f"
    if x.dtype == np.uint8:
        x = images.to_float(x)
    elif not fractions:
        raise JcmError(f"images of {x.dtype}: give uint8, or fractions in [-1, 1]")
    shape = (size, size, channels)
    if size is None and x.ndim == 4:
        shape = (*x.shape[1:3], channels)
    if x.shape[1:] != shape:
        raise JcmError(
            f"images of shape {x.shape}: the model takes (n,"
            f" {', '.join(map(str, shape))})"
        )
    if not np.isfinite(x).all():
        raise JcmError("images must be finite")
    if not noisy and np.abs(x).max() > _LARGEST:
        raise JcmError(
            f"images from {x.min():.3g} to {x.max():.3g}: give uint8, or fractions in"
            " [-1, 1], as jcm.to_float makes"
        )
    if fractions and not noisy and x.min() >= 0:
        logging.warning("no value of the images is below 0: their range is [-1, 1]")
    return x.astype(np.float32)


def as_mask(
    mask: AnyArray | Image.Image, count: int, size: int
) -> Float[np.ndarray, "m h w 1"]:
    """A mask for each of some images, or one for all.

    Args:
      mask: from 0 to 1, (h, w) or (n, h, w) or (n, h, w, 1); a picture from black to
        white.
      count: how many images there are.
      size: their height and width.

    Raises:
      JcmError: for another shape, other values, transparency, or a mask that is zero
        everywhere.
    """
    if isinstance(mask, Image.Image):
        if mask.has_transparency_data:
            raise JcmError("a mask has no transparency: white is made anew")
        mask = np.asarray(pictures.upright(mask, 1)) / 255
    free = np.asarray(mask, np.float32)
    free = free[..., 0] if free.ndim == 4 and free.shape[3] == 1 else free
    whole = (size, size)
    if free.shape not in (whole, (count, *whole)):
        raise JcmError(
            f"a mask of shape {free.shape}: {count} images of the model take {whole}"
            f" or {(count, *whole)}"
        )
    if not (free.min() >= 0 and free.max() <= 1):
        raise JcmError("a mask has values from 0 (stays) to 1 (made anew)")
    if not free.reshape(-1, size * size).any(axis=1).all():
        raise JcmError("the mask is zero everywhere: mark what is to be made anew")
    return free.reshape(-1, *whole, 1)


def _array(image: Any, channels: int) -> Shaped[np.ndarray, "h w c"]:
    if not isinstance(image, Image.Image):
        if not hasattr(image, "dtype") or np.ndim(image) != 3:
            raise JcmError(
                "a sequence has arrays of shape (h, w, c), or Pillow's images"
            )
        return np.asarray(image)
    mode = "RGB" if channels == 3 else "L"
    if image.mode != mode:
        logging.warning("an image of mode %s is converted to %s", image.mode, mode)
    found = np.asarray(pictures.upright(image, channels))
    return found.reshape(*found.shape[:2], channels)
