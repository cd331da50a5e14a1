"""Images and masks that users pass in, validated and converted to arrays."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

from jcm.data import images, pictures
from jcm.runtime.arrays import AnyArray
from jcm.runtime.errors import JcmError

# A batch of images, one image, or a sequence of images as arrays or Pillow images.
ImagesLike = AnyArray | Image.Image | Sequence[Any]
# Floats in [-1, 1] may exceed that range a little, as the results of edits do. Larger
# values are taken for another range.
_LARGEST = 2.0


def as_images(
    given: ImagesLike,
    channels: int | None,
    size: int | None,
    *,
    noisy: bool = False,
) -> Float[np.ndarray, "n h w c"]:
    """Converts images of any kind to a float32 array in [-1, 1].

    Args:
      given: uint8 or float arrays (n, h, w, c) or (h, w, c), Pillow images, or a
        sequence of single images of one size. Pillow images are placed on white and
        converted to colour or grey; the conversion is logged.
      channels: channels of the result, 3 or 1; grey arrays are repeated to get 3. None
        takes those of the images.
      size: the height and width that the images must have; None allows any.
      noisy: whether floats may be far outside [-1, 1].

    Raises:
      JcmError: if a type, shape or range is wrong, or a number is not finite.
    """
    x = _as_array(given, channels)
    channels = channels or (1 if x.shape[-1:] == (1,) else 3)
    if not x.size:
        raise JcmError("there are no images: pass at least one")
    if x.ndim == 2 or (x.ndim == 3 and x.shape[2] not in (1, 3)):
        raise JcmError(
            f"images have shape {x.shape}: pass (n, h, w, c); images[..., None] adds a"
            " grey channel"
        )
    if x.ndim == 3:
        x = x[None]
    if x.ndim == 4 and x.shape[3] == 1 and channels == 3:
        x = np.repeat(x, 3, axis=3)
    is_float = x.dtype.kind == "f"
    if x.dtype == np.uint8:
        x = images.to_float(x)
    elif not is_float:
        raise JcmError(f"images are {x.dtype}: pass uint8, or floats in [-1, 1]")
    shape = (size, size, channels)
    if size is None and x.ndim == 4:
        shape = (*x.shape[1:3], channels)
    if x.shape[1:] != shape:
        if x.ndim == 4 and x.shape[1] in (1, 3):
            remedy = "the channels come last, as in images.transpose(0, 2, 3, 1)"
        elif size is None:
            remedy = "pass (n, h, w, 1) or (n, h, w, 3)"
        else:
            remedy = f"the model takes (n, {', '.join(map(str, shape))})"
        raise JcmError(f"images have shape {x.shape}: {remedy}")
    if not np.isfinite(x).all():
        raise JcmError("images have values that are not finite: remove them")
    if not noisy and np.abs(x).max() > _LARGEST:
        raise JcmError(
            f"images range from {x.min():.3g} to {x.max():.3g}: pass uint8, or floats"
            " in [-1, 1], as jcm.to_float returns"
        )
    if is_float and not noisy and x.min() >= 0:
        logging.warning(
            "no value of the images is below 0: floats are expected in [-1, 1]"
        )
    return x.astype(np.float32)


def as_pixels(given: ImagesLike) -> UInt8[np.ndarray, "n h w c"]:
    """Converts images of any kind to uint8, with one channel or three.

    Args:
      given: what `as_images` takes; floats are clipped to [-1, 1].

    Raises:
      JcmError: if a type, shape or range is wrong, or a number is not finite.
    """
    return images.to_uint8(as_images(given, None, None))


def as_mask(
    mask: AnyArray | Image.Image, count: int, size: int
) -> Float[np.ndarray, "m h w 1"]:
    """Converts a mask to a float32 array from 0 (keep) to 1 (generate again).

    Args:
      mask: an array from 0 to 1 of shape (h, w), (n, h, w) or (n, h, w, 1), or a Pillow
        image from black to white.
      count: the number n of images.
      size: height and width of the images.

    Returns:
      One mask for all images (m = 1) or one for each (m = n).

    Raises:
      JcmError: if the shape or a value is wrong, the image is transparent, or a mask is
        zero everywhere.
    """
    if isinstance(mask, str | os.PathLike):
        raise JcmError(f"{mask!r} is a path: pass PIL.Image.open({str(mask)!r})")
    if isinstance(mask, Image.Image):
        if mask.has_transparency_data:
            raise JcmError(
                "the mask has transparency: use black to keep pixels and white to"
                " generate them again"
            )
        mask = np.asarray(pictures.to_rgb_or_grey(mask, 1)) / 255
    free = np.asarray(mask, np.float32)
    free = free[..., 0] if free.ndim == 4 and free.shape[3] == 1 else free
    whole = (size, size)
    if free.shape not in (whole, (count, *whole)):
        raise JcmError(
            f"the mask has shape {free.shape}: pass {whole}, or {(count, *whole)} for"
            f" {count} images"
        )
    if not (free.min() >= 0 and free.max() <= 1):
        raise JcmError(
            "the mask has values outside [0, 1]: use 0 to keep a pixel and 1 to"
            " generate it again"
        )
    if not free.reshape(-1, size * size).any(axis=1).all():
        raise JcmError(
            "the mask is zero everywhere: mark the pixels to generate again with 1"
        )
    return free.reshape(-1, *whole, 1)


def _as_array(given: ImagesLike, channels: int | None) -> Shaped[np.ndarray, "..."]:
    if isinstance(given, str | os.PathLike):
        raise JcmError(f"{given!r} is a path: read it with jcm.open_pictures")
    if isinstance(given, Image.Image):
        given = [given]
    if isinstance(given, Sequence):
        channels = channels or _channels(given)
        arrays = [_single(image, channels) for image in given]
        if len({(array.shape, array.dtype.kind) for array in arrays}) > 1:
            raise JcmError("images have several sizes or types: pass them one by one")
        given = np.stack(arrays) if arrays else np.zeros(0, np.uint8)
    return np.asarray(given)


def _channels(given: Sequence[Any]) -> int:
    """Returns 1 if all Pillow images are grey, and 3 otherwise."""
    modes = [image.mode for image in given if isinstance(image, Image.Image)]
    return 1 if all(mode[0] in "1LIF" for mode in modes) else 3


def _single(image: Any, channels: int) -> Shaped[np.ndarray, "h w c"]:
    if not isinstance(image, Image.Image):
        if not hasattr(image, "dtype") or np.ndim(image) != 3:
            raise JcmError(
                "a sequence of images must hold arrays of shape (h, w, c) or Pillow"
                " images"
            )
        return np.asarray(image)
    mode = "RGB" if channels == 3 else "L"
    if image.mode != mode:
        logging.warning("an image of mode %s is converted to %s", image.mode, mode)
    converted = np.asarray(pictures.to_rgb_or_grey(image, channels))
    return converted.reshape(*converted.shape[:2], channels)
