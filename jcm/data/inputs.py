"""Images that users pass in, validated and converted to arrays."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

from jcm.data import images, pictures
from jcm.data.masks import Size
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
        converted to colour or grey, and with `size` cropped to their central square
        and resized; the conversion is logged.
      channels: channels of the result, 3 or 1; grey arrays are repeated to get 3. None
        takes those of the images.
      size: the height and width of the result, which arrays must have; None allows
        any.
      noisy: whether floats may be far outside [-1, 1].

    Raises:
      JcmError: if a type, shape or range is wrong, or a number is not finite.
    """
    x = _as_array(given, channels, size)
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
            remedy = (
                f"the model takes (n, {', '.join(map(str, shape))}); Pillow images are"
                " resized"
            )
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


def sizes(given: ImagesLike, count: int) -> list[Size | None]:
    """Returns width and height of Pillow images as they are seen; None for arrays.

    Args:
      given: what `as_images` takes.
      count: the number of images in it.
    """
    each = [given] if isinstance(given, Image.Image) else given
    if not isinstance(each, Sequence):
        return [None] * count
    return [
        pictures.as_seen(one, report=lambda _: None).size
        if isinstance(one, Image.Image)
        else None
        for one in each
    ]


def _as_array(
    given: ImagesLike, channels: int | None, size: int | None
) -> Shaped[np.ndarray, "..."]:
    if isinstance(given, str | os.PathLike):
        raise JcmError(f"{given!r} is a path: read it with jcm.open_pictures")
    if isinstance(given, Image.Image):
        given = [given]
    if isinstance(given, Sequence):
        channels = channels or _channels(given)
        arrays = [_single(image, channels, size) for image in given]
        if len({(array.shape, array.dtype.kind) for array in arrays}) > 1:
            raise JcmError("images have several sizes or types: pass them one by one")
        given = np.stack(arrays) if arrays else np.zeros(0, np.uint8)
    return np.asarray(given)


def _channels(given: Sequence[Any]) -> int:
    """Returns 1 if all Pillow images are grey, and 3 otherwise."""
    modes = [image.mode for image in given if isinstance(image, Image.Image)]
    return 1 if all(mode[0] in "1LIF" and mode != "LAB" for mode in modes) else 3


def _single(image: Any, channels: int, size: int | None) -> Shaped[np.ndarray, "h w c"]:
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
    image = pictures.as_seen(image)
    if size is not None and image.size != (size, size):
        how = "resized" if image.width == image.height else "cropped and resized"
        logging.warning(
            "an image of %dx%d is %s to %dx%d", *image.size, how, size, size
        )
        return pictures.to_square(image, size, channels)
    converted = np.asarray(pictures.to_rgb_or_grey(image, channels))
    return converted.reshape(*converted.shape[:2], channels)
