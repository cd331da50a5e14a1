"""What people hand in: images and masks of any kind, as arrays."""

from collections.abc import Sequence

import numpy as np
from absl import logging
from jaxtyping import Float, UInt8
from PIL import Image

from jcm import images, pictures
from jcm.errors import JcmError
from jcm.images import AnyArray

Pictures = AnyArray | Image.Image | Sequence[Image.Image]


def as_images(
    given: Pictures, channels: int, size: int | None
) -> Float[np.ndarray, "n h w c"]:
    """Any kind of images as an array in [-1, 1].

    Args:
      given: uint8 or float arrays (n, h, w, c) or (h, w, c), or Pillow's images, which
        are put on white and turned into colour or grey, with a note.
      channels: 3 or 1.
      size: height and width; None for any.

    Raises:
      JcmError: for other types or shapes, and for numbers that are not finite.
    """
    if isinstance(given, Image.Image):
        given = [given]
    if isinstance(given, Sequence):
        given = np.stack([_pixels(image, channels) for image in given])
    x = np.asarray(given)
    if x.ndim == 3:
        x = x[None]
    if x.dtype == np.uint8:
        x = images.to_float(x)
    elif x.dtype.kind != "f":
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
      JcmError: for another shape, other values, or a mask that is zero everywhere.
    """
    if isinstance(mask, Image.Image):
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
    if not free.any():
        raise JcmError("the mask is zero everywhere: mark what is to be made anew")
    return free.reshape(-1, *whole, 1)


def _pixels(image: Image.Image, channels: int) -> UInt8[np.ndarray, "h w c"]:
    mode = "RGB" if channels == 3 else "L"
    if image.mode != mode:
        logging.warning("an image of mode %s is converted to %s", image.mode, mode)
    found = np.asarray(pictures.upright(image, channels))
    return found.reshape(*found.shape[:2], channels)
