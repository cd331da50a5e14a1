"""Picture files and Pillow images, converted to small square arrays of pixels.

`decode` and `as_seen` are the one place that decides what a picture looks like:
upright, in the colours of sRGB, with 8 bits.
"""

import contextlib
import functools
import io
import pathlib

import numpy as np
from absl import logging
from jaxtyping import Shaped, UInt8
from PIL import Image, UnidentifiedImageError

from jcm.data import formats, metadata
from jcm.data.metadata import Report
from jcm.runtime import budget
from jcm.runtime.errors import JcmError

# The value of white in an image, by the largest value that the image may have. Programs
# that resize fractions exceed their range a little. Values up to 16 could be those of
# bright fractions or of a dark picture, so that white is unknown.
_WHITE: dict[str, dict[float, int | None]] = {
    "F": {1.1: 1, 16: None, 280: 255, 72_000: 65_535},
    "I": {255: 255, 65_535: 65_535},
}

# The modes of images as they are seen.
_SEEN = frozenset({"L", "LA", "RGB", "RGBA"})
# Large images are converted in parts of about so many pixels, which saves memory.
_PART = 2**20


def decode(
    file: pathlib.Path | bytes,
    report: Report | None = None,
    most: int = budget.PICTURE_PIXELS,
) -> Image.Image:
    """Returns the picture in a file as it is seen; see `as_seen`.

    Args:
      file: a path, or the content of a file that Pillow can decode, whatever its
        suffix, or of HEIF if pillow-heif is installed; of an animation the first frame
        is used.
      report: takes what is ignored; by default it is logged, with the path.
      most: the largest number of pixels; of more, none is decoded.

    Raises:
      JcmError: for a file of HEIF without pillow-heif, if the file or the picture is
        too large or has too many parts, or for a path that is no regular file.
      Exception: whatever Pillow raises for a broken file, which can be of many types.
    """
    if isinstance(file, bytes):
        path, data = None, file
    else:
        path = budget.regular_file(file, budget.PICTURE_BYTES)
        data = path.read_bytes()
    formats.check_heif(data)
    metadata.check_parts(data)
    ignored: list[str] = []
    try:
        image = _decode(data, ignored.append, most)
    except JcmError:
        raise
    except Exception as error:
        found = _decode_without_metadata(data, most)
        if found is None:
            raise
        image, ignored = found[0], [metadata.damaged(error), *found[1]]
    report = report or functools.partial(_log_ignored, path or "a picture")
    # The same warning can come from opening a file and from reading its metadata.
    for each in dict.fromkeys(ignored):
        report(each)
    return image


def _log_ignored(path: pathlib.Path | str, what: str) -> None:
    logging.warning("%s: ignored %s", path, what)


def _decode(data: bytes, report: Report, most: int) -> Image.Image:
    with metadata.reported(report):
        image = _opened(data, most)
        if image.format in metadata.WITH_FRAMES:
            metadata.check_frames(image, report)
            if image.format != "PNG":  # whose frames are counted when it is opened
                image = _opened(data, most)
        # Pillow turns these upright, and reads their metadata, when it decodes them.
        if image.format == "TIFF":
            image.load()
    image.load()
    image = _seen(image, report)
    image.info = {}
    return image


def _opened(data: bytes, most: int) -> Image.Image:
    """Opens a picture without decoding it.

    Raises:
      JcmError: if it has too many pixels.
      UnidentifiedImageError: if it is not a picture.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=formats.decoded())
    except UnidentifiedImageError as error:
        raise UnidentifiedImageError("it is not a picture") from error
    except Image.DecompressionBombError as error:
        raise JcmError(f"it has more than {most:,} pixels: make it smaller") from error
    width, height = image.size
    if width * height > most:
        raise JcmError(
            f"it has {width}x{height} pixels, more than {most:,}: make it smaller"
        )
    return image


def _decode_without_metadata(
    data: bytes, most: int
) -> tuple[Image.Image, list[str]] | None:
    """Returns a picture, and what else is ignored; None if its pixels are damaged."""
    for sound in metadata.without(data):
        ignored: list[str] = []
        with contextlib.suppress(Exception):
            return _decode(sound, ignored.append, most), ignored
    return None


def as_seen(image: Image.Image, report: Report | None = None) -> Image.Image:
    """Returns an image as it is seen: upright by its EXIF data, in sRGB, with 8 bits.

    An image without a colour profile is taken for sRGB. Damaged metadata is ignored.

    Args:
      image: an image of any mode that Pillow knows.
      report: takes what is ignored; by default it is logged.

    Returns:
      An image of mode L, LA, RGB or RGBA. It has no metadata, so that a second call
      changes nothing.

    Raises:
      JcmError: if values of more than 8 bits have an unknown range.
    """
    report = report or functools.partial(_log_ignored, "an image")
    seen = _seen(image, report)
    if seen is image and image.info:
        seen = image.copy()
    seen.info = {}
    return seen


def _seen(image: Image.Image, report: Report) -> Image.Image:
    """Returns an image as it is seen, perhaps with metadata; it may be the given one.

    Raises:
      JcmError: see `as_seen`.
    """
    given, profile = image, image.info.get("icc_profile")
    image = metadata.upright(image, report)
    if image.mode in _SEEN and not profile and "transparency" not in image.info:
        metadata.check_gamma(given, report)
        return image
    alpha = None
    if image.mode[0] in "IF":
        image = Image.fromarray(_to_uint8(np.asarray(image), image.mode))
    if image.has_transparency_data:
        grey = image.mode in ("1", "L", "LA", "La")
        image = image.convert("LA" if grey else "RGBA")
        alpha = image.getchannel("A")
        image = image.convert("L" if grey else "RGB")
    if image.mode == "LAB":  # its colours need no profile
        image, profile = metadata.from_lab(image), None
    elif image.mode not in ("L", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    if profile:
        image = metadata.to_srgb(image, profile, report)
    else:
        metadata.check_gamma(given, report)
    if image.mode == "CMYK":
        image = image.convert("RGB")
    if alpha is not None:
        image.putalpha(alpha)
    return image


def read(
    file: pathlib.Path | bytes, size: int, channels: int, report: Report | None = None
) -> UInt8[np.ndarray, "size size channels"]:
    """Reads a picture file and converts it with `to_square`.

    Args:
      file: see `decode`.
      size: height and width of the result.
      channels: 3 for colour (grey is repeated), 1 for grey (luma of ITU-R 601).
      report: see `decode`.

    Raises:
      Exception: see `decode`.
    """
    return to_square(decode(file, report), size, channels)


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
    """Converts an image as it is seen to colour or grey, on white.

    Args:
      image: an image of any mode that Pillow knows.
      channels: 3 for colour (grey is repeated), 1 for grey (luma of ITU-R 601).
    """
    image, mode = as_seen(image), "RGB" if channels == 3 else "L"
    if not image.has_transparency_data:
        return image if image.mode == mode else image.convert(mode)
    flat = Image.new(mode, image.size)
    rows = max(1, _PART // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        part = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", part.size, "white")
        flat.paste(Image.alpha_composite(white, part).convert(mode), box)
    return flat


def _to_uint8(x: Shaped[np.ndarray, "h w"], mode: str) -> UInt8[np.ndarray, "h w"]:
    """Scales grey values of more than 8 bits, which Pillow would clip.

    Modes I and F have no fixed range. Their largest value decides whether they are
    taken for 16 bits, 8 bits or fractions.

    Raises:
      JcmError: if values are none of these.
    """
    least, largest = x.min(), x.max()
    found = (white for limit, white in _WHITE[mode[:1]].items() if largest <= limit)
    white = 65_535 if mode.startswith("I;16") else next(found, None)
    if white is None or least < (-0.1 * largest if mode == "F" else 0):
        raise JcmError(
            f"its values from {least:.4g} to {largest:.4g} have no known range: save it"
            " with 8 bits"
        )
    scaled = np.empty(x.shape, np.uint8)
    rows = max(1, _PART // x.shape[1])
    for top in range(0, len(x), rows):
        part = np.rint(x[top : top + rows] * (255 / white))
        scaled[top : top + rows] = np.clip(part, 0, 255)
    return scaled
