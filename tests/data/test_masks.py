"""Tests of masks that are pictures."""

import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from jcm.data import masks, pictures
from jcm.runtime.errors import JcmError

_HERE = pathlib.Path(__file__).parent


def _painted(mask, size=8, shape=None):
    return masks.of_picture(mask, size, "the mask", {"photo.png": shape})


def _as_jpeg(image):
    content = io.BytesIO()
    image.save(content, "JPEG", quality=90)
    return Image.open(content)


def test_a_thin_stroke_does_not_vanish():
    thin = pictures.decode(_HERE / "thin_mask.png")
    found = _painted(thin)
    want = np.zeros((8, 8))
    want[:, 3:5] = want[:4, :2] = 1
    np.testing.assert_array_equal(found, want)
    assert found.sum() == 24
    # Neither the colour of the brush nor the format of the file matters.
    blue = Image.merge("RGB", [Image.new("L", thin.size)] * 2 + [thin])
    for other in (blue, thin.convert("1"), thin.convert("P"), _as_jpeg(thin)):
        np.testing.assert_array_equal(_painted(other), want)
    # The same for masks of the model's size.
    np.testing.assert_array_equal(_painted(Image.fromarray(np.uint8(want * 99))), want)


@pytest.mark.parametrize("size", [3, 5, 8, 13])
def test_every_dot_is_in_a_pixel(size):
    for i in range(8):
        dot = np.zeros((8, 8), np.uint8)
        dot[i, i] = 255
        found = _painted(Image.fromarray(dot), size)
        middle = int((i + 0.5) * size / 8)
        assert found[middle, middle] == 1
        assert found.sum() <= (1 + -(-size // 8)) ** 2


def test_a_mask_has_the_shape_of_the_upright_picture():
    photo = pictures.decode(_HERE / "rotated_photo.png")
    mask = pictures.decode(_HERE / "mask_as_seen.png")
    found = _painted(mask, shape=photo.size)
    # The photograph is black where it is painted on.
    black = pictures.to_square(photo, 8, 1)[..., 0] == 0
    np.testing.assert_array_equal(found, black)
    # A mask that is drawn on the stored pixels is refused.
    stored = mask.transpose(Image.Transpose.ROTATE_90)
    with pytest.raises(
        JcmError, match="24x16 has another aspect .* photo.png of 16x24"
    ):
        _painted(stored, shape=photo.size)
    # One that is rotated like the photograph is not.
    exif = Image.Exif()
    exif[0x0112] = 6
    content = io.BytesIO()
    stored.save(content, "PNG", exif=exif)
    rotated = pictures.decode(content.getvalue())
    np.testing.assert_array_equal(_painted(rotated, shape=photo.size), found)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.new("L", (9, 9)), "the mask is black everywhere: paint white"),
        (Image.new("L", (9, 9), 1), "almost black, with values up to 1 of 255: paint"),
        (Image.new("RGBA", (9, 9)), "the mask has transparency: use black to keep"),
        (Image.new("L", (9, 8), 255), "9x8 is not square, but photo.png is: pass the"),
    ],
)
def test_masks_that_do_not_fit_raise(mask, message):
    with pytest.raises(JcmError, match=message):
        _painted(mask)


def test_paint_outside_of_the_central_square_raises():
    mask = np.zeros((8, 24), np.uint8)
    mask[:, :8] = 255
    with pytest.raises(JcmError, match="black everywhere in its central square: paint"):
        _painted(Image.fromarray(mask), shape=(48, 16))


def test_an_opaque_channel_is_no_transparency():
    mask = np.zeros((8, 8), np.uint8)
    mask[2:4, 2:4] = 255
    grey = Image.fromarray(mask)
    want = _painted(grey)
    for mode in ("LA", "RGBA", "PA"):
        np.testing.assert_array_equal(_painted(grey.convert(mode)), want)
