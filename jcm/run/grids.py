"""Pictures of pictures: grids of samples, with captions, as PNG files."""

import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from jcm.runtime import files

_VISIBLE = 32  # pixels; smaller images are enlarged to this at least
_FONT_SIZE = 14
_MARGIN = 12
_WHITE = 255


def grid(
    images: UInt8[np.ndarray, "n h w c"],
    columns: int | None = None,
    scale: int | None = None,
    pad: int = 1,
) -> UInt8[np.ndarray, "height width 3"]:
    """Lays images out on white, row by row.

    Args:
        images: At least one image, with one (grey) or three channels.
        columns: Images per row; about as many as there are rows when not given.
        scale: How many times to enlarge, without smoothing; as much as it takes to
            see tiny images well when not given.
        pad: White pixels around each image.
    """
    n, h, w, c = images.shape
    if n == 0 or c not in (1, 3):
        raise ValueError(f"images are (n, h, w, 1 or 3), not {images.shape}")
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
    """Puts pictures side by side, each below its caption, black on white.

    Args:
        panels: From caption to picture, left to right, for example
            `{"teacher, 35 evaluations": grid(a), "consistency, 1 step": grid(b)}`.
            A caption wider than its picture is broken into lines.
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


def save_png(path: str | os.PathLike, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes a PNG file, which appears whole or not at all.

    Raises:
      JcmError: where it cannot be written.
    """
    with files.replacing(Path(path)) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")


def _canvas(height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    return np.full((height, width, 3), _WHITE, np.uint8)


def _paste(canvas: np.ndarray, image: np.ndarray, top: int, left: int) -> None:
    canvas[top : top + image.shape[0], left : left + image.shape[1]] = image


def _caption(text: str, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Draws a text in lines of at most `width`, if no word alone is wider."""
    font = ImageFont.load_default(_FONT_SIZE)
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
