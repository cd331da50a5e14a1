import errno
import os
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jcm.data.images import to_float
from jcm.run import grids
from jcm.runtime.errors import JcmError


def solid(*greys, size=(40, 40), channels=3):
    """Returns an image of one grey level for each argument."""
    levels = np.array(greys, np.uint8)[:, None, None, None]
    return np.broadcast_to(levels, (len(greys), *size, channels)).copy()


def test_images_lie_row_by_row_with_white_gaps():
    picture = grids.grid(solid(10, 20, 30), columns=2, pad=3)
    assert picture.shape == (2 * 40 + 3 * 3, 2 * 40 + 3 * 3, 3)
    for grey, top, left in [(10, 3, 3), (20, 3, 46), (30, 46, 3)]:
        assert (picture[top : top + 40, left : left + 40] == grey).all()
    assert (picture[46:, 46:] == 255).all()  # The cell without an image.
    assert (picture[:3] == 255).all() and (picture[:, 43:46] == 255).all()


def test_tiny_images_are_enlarged_without_smoothing():
    images = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
    picture = grids.grid(images, pad=0)
    assert picture.shape == (32, 32, 3)
    np.testing.assert_array_equal(picture[::4, ::4], np.repeat(images[0], 3, axis=-1))
    np.testing.assert_array_equal(picture[3::4, 3::4], picture[::4, ::4])


@pytest.mark.parametrize(
    "n, columns, shape", [(9, None, (3, 3)), (5, None, (2, 3)), (2, 8, (1, 2))]
)
def test_number_of_columns(n, columns, shape):
    picture = grids.grid(solid(*range(n)), columns=columns, scale=1, pad=0)
    assert picture.shape == (shape[0] * 40, shape[1] * 40, 3)


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (4, 8, 8, 4)])
def test_images_that_cannot_be_drawn_raise(shape):
    with pytest.raises(ValueError, match=r"\(n, h, w, 1 or 3\)"):
        grids.grid(np.zeros(shape, np.uint8))


def test_captions_stand_above_their_pictures():
    # The pictures have colours, the letters are grey.
    left = np.full((60, 90, 3), (200, 0, 0), np.uint8)
    right = np.full((30, 90, 3), (0, 200, 0), np.uint8)
    picture = grids.captioned({"one": left, "a caption of several lines": right})
    corners = []
    for panel in (left, right):
        place = (picture == panel[0, 0]).all(axis=-1)
        (top, x), (bottom, end) = np.argwhere(place)[[0, -1]]
        assert (bottom + 1 - top, end + 1 - x) == panel.shape[:2]
        assert place.sum() == panel.shape[0] * panel.shape[1]
        corners.append((top, x))
    (top, x_left), (top_right, x_right) = corners
    assert top == top_right and x_right > x_left + 90
    # Both captions are visible above the pictures, and not at the border.
    ink = (picture[:top] < 128).all(axis=-1)
    assert ink[:, x_left : x_left + 90].any() and ink[:, x_right : x_right + 90].any()
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    assert 0 < rows[0] and rows[-1] < top - 1
    assert 0 < columns[0] and columns[-1] < picture.shape[1] - 1
    # The longer one is broken into lines and does not widen its picture.
    assert x_right + 90 < picture.shape[1] < x_right + 2 * 90


def test_a_word_wider_than_its_picture_widens_the_column():
    narrow = grids.captioned({"i": solid(50, size=(40, 20))[0]})
    wide = grids.captioned({"incomprehensibilities": solid(50, size=(40, 20))[0]})
    assert wide.shape[1] > narrow.shape[1] + 50
    assert (wide[:, [0, -1]] == 255).all()


def test_a_png_is_read_back_and_no_other_file_remains(tmp_path):
    picture = grids.grid(solid(10, 20), scale=3)
    path = tmp_path / "samples" / "grid.png"
    grids.save_png(solid(30), path)
    grids.save_png(solid(10, 20), path)  # It replaces the file.
    np.testing.assert_array_equal(np.asarray(Image.open(path)), picture)
    assert [entry.name for entry in path.parent.iterdir()] == ["grid.png"]


def test_a_failed_write_keeps_the_old_png(tmp_path, monkeypatch):
    path = tmp_path / "grid.png"
    grids.save_png(solid(10), path)
    before = path.read_bytes()

    def half(path, content):
        path.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pathlib.Path, "write_bytes", half)
    with pytest.raises(JcmError, match="No space left.*free some space"):
        grids.save_png(solid(20), path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("given", "shape"),
    [
        (solid(10, size=(8, 8), channels=1), (256, 256, 3)),
        (solid(10, size=(8, 8))[0], (256, 256, 3)),
        (solid(10, size=(300, 200)), (300, 200, 3)),
        (solid(10, size=(300, 300)), (300, 300, 3)),
        (solid(10, 20, 30, size=(8, 8)), (259, 259, 3)),
        (solid(*range(64), size=(8, 8)), (265, 265, 3)),
    ],
)
def test_small_pictures_are_enlarged_by_whole_numbers(tmp_path, given, shape):
    path = tmp_path / "a.png"
    grids.save_png(given, path)
    picture = np.asarray(Image.open(path))
    assert picture.shape == shape
    grids.save_png(given, path, scale=1)
    np.testing.assert_array_equal(
        np.asarray(Image.open(path)),
        grids.grid(
            given.reshape(-1, *given.shape[-3:]),
            None,
            1,
            int(given.ndim == 4 and len(given) > 1),
        ),
    )


def test_all_kinds_of_images_make_the_same_png(tmp_path, caplog):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    pillow = [Image.fromarray(each[..., 0]) for each in pixels]
    paths = []
    for given in (pixels, to_float(pixels), jnp.asarray(to_float(pixels)), pillow):
        paths.append(tmp_path / f"{len(paths)}.png")
        grids.save_png(given, paths[-1])
    assert len({path.read_bytes() for path in paths}) == 1
    assert not caplog.text
    # A list of batches has a row for each.
    wide = [pixels, pixels[:2], pixels[2:]]
    for rows in (wide, [pillow, pillow[:2], pillow[2:]]):
        grids.save_png(rows, tmp_path / "rows.png", scale=1)
        grids.save_png(
            np.tile(pixels, (2, 1, 1, 1)), tmp_path / "a.png", columns=3, scale=1
        )
        assert (tmp_path / "rows.png").read_bytes() == (tmp_path / "a.png").read_bytes()
    colour = Image.new("RGB", (8, 8), (10, 20, 30))
    grids.save_png([pillow[0], colour], tmp_path / "mixed.png", scale=1)
    mixed = np.asarray(Image.open(tmp_path / "mixed.png"))
    assert (mixed[1:9, 10:18] == (10, 20, 30)).all()
    grids.save_png(pixels / np.float32(255), tmp_path / "light.png")
    assert "no value of the images is below 0" in caplog.text


@pytest.mark.parametrize(
    ("images", "name", "message"),
    [
        (solid(10).astype(np.float32), "a.png", "images range from 10 to 10: pass uin"),
        (solid(10).astype(int), "a.png", "images are int64: pass uint8"),
        (solid(10)[..., 0], "a.png", r"\(1, 40, 40\): pass \(n, h, w, c\)"),
        (np.moveaxis(solid(10), 3, 1), "a.png", r"transpose\(0, 2, 3, 1\)"),
        (solid(10, channels=2), "a.png", r"pass \(n, h, w, 1\) or \(n, h, w, 3\)"),
        (solid(10)[:0], "a.png", "there are no images"),
        (np.full((1, 8, 8, 1), np.nan), "a.png", "not finite"),
        ("a.png", solid(10), "takes the images first"),
        (solid(10), "a.jpg", "a.jpg does not end with .png"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path, images, name, message):
    path = tmp_path / name if isinstance(name, str) else "a.png"
    with pytest.raises(JcmError, match=message):
        grids.save_png(images, path)
    assert not list(tmp_path.iterdir())
