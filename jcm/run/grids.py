"""Pictures and grids of pictures, with captions, as PNG files."""

import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from jcm.data import inputs
from jcm.data.inputs import ImagesLike
from jcm.runtime import files
from jcm.runtime.arguments import explained, optional
from jcm.runtime.arrays import Whole
from jcm.runtime.errors import JcmError
from jcm.runtime.paths import expanded

_VISIBLE = 32  # pixels; smaller images are enlarged to at least this size
_LARGE = 256  # pixels; smaller files are enlarged to about this size
_FONT_SIZE = 14
_MARGIN = 12
_WHITE = 255


def grid(
    images: UInt8[np.ndarray, "n h w c"],
    columns: int | None = None,
    scale: int | None = None,
    pad: int = 1,
) -> UInt8[np.ndarray, "height width 3"]:
    """Arranges images in rows on a white background.

    Args:
        images: At least one image, with one (grey) or three channels.
        columns: Images per row; by default about the number of rows.
        scale: The factor to enlarge by, without smoothing; by default tiny images are
            enlarged to at least 32 pixels.
        pad: White pixels around each image.

    Raises:
        ValueError: if there is no image, or the number of channels is not 1 or 3.
    """
    n, h, w, c = images.shape
    if n == 0 or c not in (1, 3):
        raise ValueError(f"images must be (n, h, w, 1 or 3), not {images.shape}")
    columns = min(columns or math.ceil(math.sqrt(n)), n)
    rows = math.ceil(n / columns)
    scale = scale or math.ceil(_VISIBLE / min(h, w))

    enlarged = images.repeat(scale, axis=1).repeat(scale, axis=2)
    cell_h, cell_w = h * scale + pad, w * scale + pad
    canvas = _canvas(rows * cell_h + pad, columns * cell_w + pad)
    for i, image in enumerate(enlarged):
        row, column = divmod(i, columns)
        _paste(canvas, image, row * cell_h + pad, column * cell_w + pad)
    return canvas


def captioned(
    panels: Mapping[str, UInt8[np.ndarray, "_h _w 3"]],
) -> UInt8[np.ndarray, "height width 3"]:
    """Arranges pictures from left to right, each below its caption, black on white.

    Args:
        panels: Pictures by caption, for example
            `{"teacher, 35 evaluations": grid(a), "consistency, 1 step": grid(b)}`.
            A caption that is wider than its picture is broken into lines.
    """
    blocks = [_caption(text, panel.shape[1]) for text, panel in panels.items()]
    top = _MARGIN + max(block.shape[0] for block in blocks)
    height = top + max(panel.shape[0] for panel in panels.values()) + _MARGIN
    columns = []
    for block, panel in zip(blocks, panels.values(), strict=True):
        column = _canvas(height, max(block.shape[1], panel.shape[1]))
        _paste(column, block, top - block.shape[0], 0)
        _paste(column, panel, top, 0)
        columns += [_canvas(height, _MARGIN), column]
    return np.concatenate([*columns, _canvas(height, _MARGIN)], axis=1)


@explained
def save_png(
    images: ImagesLike,
    path: str | os.PathLike,
    *,
    columns: Whole | None = None,
    scale: Whole | None = None,
) -> None:
    """Writes one picture, or a grid of several, to a PNG file.

    A reader never sees a part of the file; missing folders are created.

    Args:
      images: uint8 arrays or floats in [-1, 1], (n, h, w, c) or (h, w, c), a Pillow
        image, or a list of them. A list of batches, such as a trajectory, has a row for
        each. Floats that are a little outside are clipped. If none is below 0, a
        warning says that they are taken to be in [-1, 1].
      path: of the file; it ends with .png.
      columns: pictures per row; by default about the number of rows.
      scale: the whole number to enlarge by, without smoothing. By default, small
        pictures are enlarged so that each has at least 32 pixels, and the file about
        256.

    Raises:
      JcmError: if the images have another range, type or shape, or if the file cannot
        be written.
    """
    if isinstance(images, str | os.PathLike):
        raise JcmError("save_png takes the images first, and then the path")
    in_a_row = optional("columns", columns, least=1)
    larger = optional("scale", scale, least=1)
    path = expanded(path)
    if path.suffix.lower() != ".png":
        raise JcmError(f"{path} does not end with .png: save_png writes PNG files")
    if isinstance(images, Sequence) and images and _is_batch(images[0]):
        in_a_row = in_a_row or len(images[0])
        images = [image for batch in images for image in batch]
    pixels = inputs.as_pixels(images)
    n, h, w, _ = pixels.shape
    if larger is None:
        row = min(in_a_row or math.ceil(math.sqrt(n)), n)
        longer = max(row * w, math.ceil(n / row) * h)
        larger = max(math.ceil(_VISIBLE / min(h, w)), _LARGE // longer)
    picture = grid(pixels, in_a_row, larger, pad=int(n > 1))
    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="PNG")
    files.write_bytes(path, content.getvalue())


def _is_batch(images: Any) -> bool:
    """Returns whether images are several, and not a single one."""
    return isinstance(images, Sequence) or np.ndim(images) == 4


def _canvas(height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    return np.full((height, width, 3), _WHITE, np.uint8)


def _paste(canvas: np.ndarray, image: np.ndarray, top: int, left: int) -> None:
    canvas[top : top + image.shape[0], left : left + image.shape[1]] = image


def _caption(text: str, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Draws text in lines of at most `width` pixels, unless a single word is wider."""
    font = ImageFont.load_default(_FONT_SIZE)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise JcmError("this Pillow has no FreeType to write captions: use its wheel")
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if not lines[-1] or font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    line_height = sum(font.getmetrics())
    size = (math.ceil(max(map(font.getlength, lines))), line_height * len(lines) + 4)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for i, line in enumerate(lines):
        draw.text((0, i * line_height), line, fill="black", font=font)
    return np.asarray(picture)
