"""Tests of reading pictures of any kind as squares of one size."""

import pathlib

import numpy as np
import pytest
from folders import picture, save
from PIL import Image

from jcm.data import pictures
from jcm.runtime.errors import JcmError


def test_transparent_pictures_are_put_on_white(tmp_path):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:2, :, 3] = 255
    rgba[2, :, 3] = 128
    Image.fromarray(rgba).save(tmp_path / "a.png")
    image = pictures.read(tmp_path / "a.png", 4, 3)
    assert image[0, 0].tolist() == [200, 0, 0]
    assert image[2, 0].tolist() == [227, 127, 127]
    assert image[3, 0].tolist() == [255, 255, 255]


def test_palette_with_a_transparent_entry(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "p.gif", transparency=1)
    read = pictures.read(tmp_path / "p.gif", 2, 3)
    assert read.tolist() == [
        [[255, 0, 0], [255, 255, 255]],
        [[0, 0, 255], [255, 0, 0]],
    ]


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    grey = np.array([[0, 257], [32896, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "g.png")
    assert pictures.read(tmp_path / "g.png", 2, 1)[..., 0].tolist() == [
        [0, 1],
        [128, 255],
    ]


@pytest.mark.parametrize(
    ("values", "dtype", "read"),
    [
        ([0, 0.5, 1, 1.05], np.float32, [0, 128, 255, 255]),
        ([-3, 128, 255, 262], np.float32, [0, 128, 255, 255]),
        ([0, 257, 32896, 65535], np.float32, [0, 1, 128, 255]),
        ([0, 100, 200, 255], np.int32, [0, 100, 200, 255]),
        ([0, 257, 32896, 65535], np.int32, [0, 1, 128, 255]),
    ],
)
def test_the_range_of_grey_values_is_found(tmp_path, values, dtype, read):
    Image.fromarray(np.reshape(values, (2, 2)).astype(dtype)).save(tmp_path / "a.tif")
    assert pictures.read(tmp_path / "a.tif", 2, 1).ravel().tolist() == read


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([-1, 0, 0, 1], np.float32),
        ([-2.1, 0, 0, 2.6], np.float32),
        ([0, 0, 1, 3.5], np.float32),
        ([0, 0, 1, np.nan], np.float32),
        ([0, 0, 1, np.inf], np.float32),
        ([0, 0, 1, -np.inf], np.float32),
        ([0, 0, 0, 10**6], np.float32),
        ([-1, 0, 0, 1], np.int32),
        ([0, 0, 0, 65536], np.int32),
    ],
)
def test_grey_values_of_unknown_range_are_refused(tmp_path, values, dtype):
    Image.fromarray(np.reshape(values, (2, 2)).astype(dtype)).save(tmp_path / "a.tif")
    with pytest.raises(JcmError, match="its values from .* have no known range: save"):
        pictures.read(tmp_path / "a.tif", 2, 1)


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was held upright: turn by 90 degrees clockwise.
    upright = picture(size=(4, 4))
    Image.fromarray(upright).save(tmp_path / "r.png", exif=exif)
    read = pictures.read(tmp_path / "r.png", 4, 3)
    np.testing.assert_array_equal(read, np.rot90(upright, -1))


@pytest.mark.parametrize("size", [(13, 8), (8, 13)])
def test_the_central_square_is_reduced_by_averaging(tmp_path, size):
    save(tmp_path / "wide.png", size=size)
    pixels = picture(size=size).astype(float)
    square = pixels[:, 2:10] if size[0] > size[1] else pixels[2:10]
    averages = square.reshape(4, 2, 4, 2, 3).mean((1, 3))
    read = pictures.read(tmp_path / "wide.png", 4, 3)
    # Pillow rounds after the rows and again after the columns.
    np.testing.assert_allclose(read, averages, atol=1)


def test_small_pictures_are_enlarged_smoothly(tmp_path):
    Image.fromarray(np.array([[0, 200]] * 2, np.uint8)).save(tmp_path / "s.png")
    read = pictures.read(tmp_path / "s.png", 8, 1)
    assert read.shape == (8, 8, 1) and len(np.unique(read)) > 4


def test_grey_and_colour_pictures_are_converted(tmp_path):
    Image.fromarray(np.full((2, 2), 77, np.uint8)).save(tmp_path / "g.png")
    Image.new("RGB", (2, 2), (255, 0, 0)).save(tmp_path / "c.bmp")
    assert (pictures.read(tmp_path / "g.png", 2, 3) == 77).all()
    assert (pictures.read(tmp_path / "c.bmp", 2, 1) == 76).all()


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    red, blue = Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2), "blue")
    red.save(tmp_path / "a.webp", save_all=True, append_images=[blue], lossless=True)
    assert pictures.read(tmp_path / "a.webp", 2, 3)[0, 0].tolist() == [255, 0, 0]


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.new("RGB", (30, 20)).save(path)
    content = path.read_bytes()
    assert pictures.decode(path, most=600).size == (30, 20)
    monkeypatch.setattr(Image.Image, "load", None)
    for file in (path, content):
        with pytest.raises(JcmError, match="30x20 pixels, more than 599: make it"):
            pictures.decode(file, most=599)


def test_a_picture_beyond_the_limit_of_pillow_is_one_line(tmp_path, monkeypatch):
    Image.new("1", (30, 20)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(JcmError, match="more than 178,956,970 pixels: make it smaller"):
        pictures.decode(tmp_path / "a.png")


def test_only_files_of_bounded_size_are_read(tmp_path, monkeypatch):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(pictures.budget, "PICTURE_BYTES", 9)
    with pytest.raises(JcmError, match="bytes, and at most 9 are read"):
        pictures.decode(tmp_path / "a.png")
    with pytest.raises(JcmError, match="/dev/zero is not a regular file"):
        pictures.decode(pathlib.Path("/dev/zero"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["LA", "RGBA", "I;16"])
def test_large_pictures_are_converted_in_parts(monkeypatch, mode, channels):
    rng = np.random.default_rng(0)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (50, 40), np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 256, (50, 40, 4), np.uint8))
        image = image.convert(mode)
    whole = np.asarray(pictures.to_rgb_or_grey(image, channels))
    monkeypatch.setattr(pictures, "_PART", 300)
    parts = np.asarray(pictures.to_rgb_or_grey(image, channels))
    np.testing.assert_array_equal(parts, whole)
