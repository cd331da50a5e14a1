"""What a picture file says about its pixels: which way is up, and their colours.

Programs damage metadata more often than pixels. Damaged metadata is reported and
ignored, and the pixels are used.
"""

import contextlib
import functools
import io
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Collection, Iterator

import numpy as np
from PIL import ExifTags, Image, ImageCms

from jcm.runtime.errors import JcmError, one_line

# Takes what is ignored in a file, in a few words.
Report = Callable[[str], None]

# What undoes each orientation of EXIF.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The mode of the pixels that a profile of each kind describes.
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
# A profile that moves no colour by more than this, of 255, is taken for sRGB.
_SAME = 1

# The parts of a file that may be kept when it cannot be read as it is, from most to
# least: chunks of PNG and segments of JPEG. Without transparency, or the mark of Adobe
# on inverted colours, the pixels would differ.
_PNG_KEPT: tuple[Collection[bytes], ...] = (
    (b"tRNS", b"eXIf", b"iCCP"),
    (b"tRNS", b"eXIf"),
    (b"tRNS",),
    (),
)
_EXIF, _PROFILE, _ADOBE, _COMMENT = 0xE1, 0xE2, 0xEE, 0xFE
_JPEG_KEPT: tuple[Collection[int], ...] = (
    (_EXIF, _PROFILE, _ADOBE),
    (_EXIF, _ADOBE),
    (_ADOBE,),
    (),
)

# Files with these formats hold animations, or independent pages. Those of other formats
# with several pictures hold layers, previews or sizes of one.
WITH_FRAMES = frozenset({"AVIF", "DCX", "FLI", "GIF", "HEIF", "PNG", "TIFF", "WEBP"})
# That of sRGB in a PNG file, and how much it may differ.
_GAMMA, _SAME_GAMMA = 0.45455, 0.01

# A file has at most so many parts. Pillow looks at each, which takes seconds for these.
_PARTS = 50_000

_lock = threading.Lock()


@contextlib.contextmanager
def reported(report: Report) -> Iterator[None]:
    """Reports the warnings of Pillow about damaged metadata.

    Python can record warnings in one thread at a time, so the others wait. Decode
    pixels outside of this block.
    """
    with _lock, warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield
    for each in found:
        # Pillow warns about large pictures too.
        if not issubclass(each.category, Image.DecompressionBombWarning):
            report(damaged(each.message))


def damaged(reason: Warning | Exception | str) -> str:
    """Returns the words for damaged metadata, for a `Report`."""
    error = reason if isinstance(reason, Exception) else Exception(reason)
    return f"damaged metadata ({one_line(error).rstrip('.')})"


def upright(image: Image.Image, report: Report) -> Image.Image:
    """Turns and mirrors an image as its EXIF data says."""
    found = 1
    try:
        with reported(report):
            exif = image.getexif()
            if not exif and image.info.get("exif"):
                # Pillow swallowed the error when it opened the file.
                Image.Exif().load(image.info["exif"])
            found = exif.get(ExifTags.Base.Orientation, 1)
    # Pillow raises many types of exceptions for damaged data.
    except Exception as error:
        report(damaged(error))
    if isinstance(found, int) and found in _TURNS:
        return image.transpose(_TURNS[found])
    if found not in (0, 1):
        report(f"orientation {found!r}, which is not one of 1 to 8")
    return image


def check_frames(image: Image.Image, report: Report) -> None:
    """Reports that a file has several pictures, of which the first is used.

    Args:
      image: an opened file with one of the formats `WITH_FRAMES`. It may be at another
        frame afterwards.
      report: takes what is ignored.
    """
    several = False
    with contextlib.suppress(Exception):  # a later frame may be damaged
        several = getattr(image, "is_animated", False)
    if several:
        report("all frames but the first")


def check_gamma(image: Image.Image, report: Report) -> None:
    """Reports a gamma in a PNG file that is not that of sRGB."""
    gamma = image.info.get("gamma", _GAMMA)
    if "srgb" not in image.info and abs(gamma - _GAMMA) > _SAME_GAMMA:
        report(f"a gamma of {gamma:.4g}, where sRGB has {_GAMMA:.4g}")


def to_srgb(image: Image.Image, profile: bytes, report: Report) -> Image.Image:
    """Converts colours or greys to those of sRGB.

    Args:
      image: an image of mode L, RGB or CMYK.
      profile: the ICC profile that describes its numbers. An unusable one is reported.
      report: takes what is ignored.

    Returns:
      An image of mode RGB, or L if the given one is grey.
    """
    try:
        found = _transform(profile)
        if found is None:
            return image
        mode, transform = found
        if image.mode != mode and (image.mode, mode) != ("L", "RGB"):
            report(f"a colour profile for {mode} in a picture of {image.mode}")
            return image
        converted = transform.apply(image.convert(mode))
    except (ImageCms.PyCMSError, OSError, ValueError, KeyError) as error:
        report(f"a damaged colour profile ({one_line(error)})")
        return image
    # Grey has equal numbers in sRGB.
    return converted.getchannel("G") if image.mode == "L" else converted


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform] | None:
    """Returns what converts to sRGB, and the mode that it takes; None for sRGB.

    Raises:
      Exception: if the profile is damaged.
    """
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    mode = _MODES[source.profile.xcolor_space.strip()]
    transform = ImageCms.buildTransform(
        source,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        # Several threads use the transform.
        flags=ImageCms.Flags.NOCACHE,
    )
    if mode != "RGB":
        return mode, transform
    values = np.linspace(0, 255, 9).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(values, values, values), -1).reshape(1, -1, 3)
    converted = np.asarray(transform.apply(Image.fromarray(colours)))
    largest = np.abs(converted.astype(int) - colours).max()
    return (mode, transform) if largest > _SAME else None


def from_lab(image: Image.Image) -> Image.Image:
    """Converts an image of mode LAB to sRGB."""
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB").apply(image)


def check_parts(data: bytes) -> None:
    """Checks that reading a PNG, JPEG or GIF file does not take minutes.

    Args:
      data: the whole file, of any format.

    Raises:
      JcmError: if it has millions of chunks, segments or blocks.
    """
    walk = next((each for mark, each in _WALKS.items() if data.startswith(mark)), None)
    if walk and any(count > _PARTS for count, _ in enumerate(walk(data), 1)):
        raise JcmError(f"it has more than {_PARTS:,} parts: save it again")


def _walk_png(data: bytes) -> Iterator[int]:
    """Yields where each chunk begins."""
    place = 8
    while place + 8 <= len(data):
        yield place
        place += int.from_bytes(data[place : place + 4], "big") + 12


def _walk_jpeg(data: bytes) -> Iterator[int]:
    """Yields where each segment before the pixels begins, and what is between them."""
    place = 2
    while place + 4 <= len(data) and data[place + 1] != 0xDA:
        yield place
        # Pillow looks for the next mark byte by byte.
        marked = data[place] == 0xFF and data[place + 1] not in (0x00, 0xFF)
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        place += 2 + length if marked else 1


def _walk_gif(data: bytes) -> Iterator[int]:
    """Yields where each block begins: extensions and frames."""

    def colours(flags: int) -> int:
        return 3 * 2 ** (flags % 8 + 1) if flags & 0x80 else 0

    place = 13 + (colours(data[10]) if len(data) > 10 else 0)
    while place + 10 <= len(data):
        yield place
        kind = data[place]
        if kind not in (0x21, 0x2C):
            place += 1
            continue
        place += 2 if kind == 0x21 else 11 + colours(data[place + 9])
        while place < len(data) and data[place]:
            place += 1 + data[place]
        place += 1


_WALKS = {b"\x89PNG": _walk_png, b"\xff\xd8": _walk_jpeg, b"GIF8": _walk_gif}


def without(data: bytes) -> Iterator[bytes]:
    """Yields a PNG or JPEG file with less and less metadata; nothing for other files.

    Args:
      data: the whole file.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        for kept in _PNG_KEPT:
            yield data[:8] + b"".join(_png_chunks(data, kept))
    elif data.startswith(b"\xff\xd8"):
        for segments in _JPEG_KEPT:
            yield data[:2] + b"".join(_jpeg_segments(data, segments))


def _png_chunks(data: bytes, kept: Collection[bytes]) -> Iterator[bytes]:
    """Yields the chunks that pixels need, and those of some other kinds if sound."""
    place = 8
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        chunk = data[place : place + length + 12]
        place += len(chunk)
        # The kind of a chunk that pixels need begins with a capital.
        if kind[:1].isupper():
            yield chunk
        elif kind in kept and chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4])):
            yield chunk


def _jpeg_segments(data: bytes, kept: Collection[int]) -> Iterator[bytes]:
    """Yields the segments that pixels need, and those of some other kinds."""
    place = 2
    while place + 4 <= len(data):
        mark, kind, length = struct.unpack_from(">BBH", data, place)
        # The pixels follow the start of scan; a damaged file ends here.
        if mark != 0xFF or kind == 0xDA:
            break
        if not (0xE0 <= kind <= 0xEF or kind == _COMMENT) or kind in kept:
            yield data[place : place + 2 + length]
        place += 2 + length
    yield data[place:]
