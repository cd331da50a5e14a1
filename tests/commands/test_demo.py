"""Tests of the page: what its buttons do, over HTTP and in a browser."""

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import originals
import pytest
from PIL import Image

import jcm
from jcm.commands.demo import actions
from jcm.commands.demo.actions import Actions, Common
from jcm.commands.demo.folder import Folder
from jcm.model import build
from jcm.runtime import leftovers
from jcm.runtime.errors import JcmError

_ADDRESS = re.compile(r"open (http://\S+) in a browser")
_BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)


@pytest.fixture(scope="module")
def digits(student):
    """The actions of a model of grey images without classes."""
    return Actions(jcm.load(student[1], batch_size=8))


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """The actions of a model of colour images."""
    path = originals.write(tmp_path_factory.mktemp("colours") / "checkpoint")
    return Actions(jcm.load(path, image_size=16, batch_size=8))


@pytest.fixture(scope="module")
def address(student):
    """The address of the page, which the command serves."""
    command = [sys.executable, "-m", "jcm.main", "demo", str(student[1])]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as served:
        lines = iter(served.stderr.readline, "")
        yield next(found[0] for line in lines if (found := _ADDRESS.findall(line)))
        served.terminate()  # A shell in the background may ignore SIGINT.
        assert "Traceback" not in served.stderr.read()
        assert served.wait(timeout=30) == 75


def _photo(size=(40, 30)):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))


def test_the_line_below_samples_states_their_cost(digits):
    shown = digits.sample(Common(seed=3, count=5), steps=2)
    assert "2 network evaluations at noise levels 80, 0.5" in shown.line
    assert [picture.shape for picture in shown.pictures] == [(256, 256, 3)] * 5
    again = digits.sample(Common(seed=3, count=5), steps=2)
    assert "compilation" not in again.line
    np.testing.assert_array_equal(again.pictures, shown.pictures)
    picture = digits.picture(Common(seed=3))
    np.testing.assert_array_equal(picture, shown.pictures[0])
    one = digits.sample(Common(seed=3, count=1), steps=1)
    assert "1 network evaluation at noise level 80" in one.line


def test_more_steps_than_in_the_config_use_the_noise_grid(digits):
    def sigmas(steps):
        model = digits.model
        return build.schedule(model.config, model.denoiser, steps=steps).sigmas

    assert sigmas(1) == (80.0,)
    assert sigmas(2) == digits.model.config.sample.sigmas
    levels = sigmas(4)
    assert len(levels) == 4 and levels[0] == 80 and levels[-1] > 0.002


def test_a_diffusion_model_can_only_be_sampled(teacher):
    diffusion = Actions(jcm.load(teacher, batch_size=8))
    shown = diffusion.sample(Common(count=2), steps=3)
    assert len(shown.pictures) == 2 and "5 network evaluations" in shown.line


def test_inpainting_keeps_what_is_not_painted_over(digits):
    given = Image.fromarray(digits.picture(Common()))
    paint = np.zeros((256, 256, 4), np.uint8)
    paint[96:160, 96:160] = 255
    layers = [Image.fromarray(np.zeros_like(paint)), Image.fromarray(paint)]
    shown = digits.inpaint(Common(count=2), given, layers)
    before, *made = shown.pictures
    hole = paint[..., 3] > 0
    for each in made:
        np.testing.assert_array_equal(each[~hole], np.asarray(given)[~hole])
        assert (each[hole] != np.asarray(given)[hole]).any()
    assert (before[hole] == 127).all() and len(made) == 2
    with pytest.raises(JcmError, match="paint over the part to replace"):
        digits.inpaint(Common(), given, layers[:1])
    with pytest.raises(JcmError, match="there is no picture yet: drop"):
        digits.inpaint(Common(), None, [])
    with pytest.raises(JcmError, match="the layers differ in size"):
        digits.inpaint(Common(), given, [layers[1], layers[1].resize((9, 9))])
    thin = np.zeros_like(paint)
    thin[100, 10:200] = 255  # one of the model's pixels is 32 pixels of the page
    before, _ = digits.inpaint(Common(count=1), given, [Image.fromarray(thin)]).pictures
    want = np.asarray(given).copy()
    want[96:128, :224] = 127
    np.testing.assert_array_equal(before, want)


def test_a_file_is_not_written_again_while_a_browser_may_read_it(tmp_path, monkeypatch):
    from jcm.commands.demo import page

    folder = Folder(tmp_path)
    picture = np.asarray(_photo())
    path = page._file(picture, folder)
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), picture)
    with monkeypatch.context() as patch:
        patch.setattr(page.files, "replacing", None)
        assert page._file(picture, folder) == path

    def deletes(_):
        os.remove(path)  # as `tidy` may do at any moment
        raise FileNotFoundError(path)

    monkeypatch.setattr(page.os, "utime", deletes)
    assert page._file(picture, folder) == path and os.path.getsize(path)


def test_a_page_removes_the_uploads_that_a_killed_one_has_left(tmp_path, monkeypatch):
    pytest.importorskip("gradio")
    from jcm.commands.demo import server

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with leftovers.temporary_folder("demo") as left:
        pass
    left.mkdir()
    (left / "upload").touch()

    def serve(_, folder, *__):
        assert list(tmp_path.iterdir()) == [folder.path] != [left]

    for name in ("load", "Actions"):
        monkeypatch.setattr(server, name, lambda *_, **__: None)
    monkeypatch.setattr(server, "_serve", serve)
    server.main(argparse.Namespace(model="", host="", port=0))
    assert not list(tmp_path.iterdir())


def test_the_pictures_of_a_call_have_a_number_of_pixels(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(actions, "_PIXELS", 5000)
    path = tmp_path / "photo.png"
    Image.new("RGBA", (60, 50), "red").save(path)
    with pytest.raises(JcmError, match=r"photo.png: it has 60x50 pixels, more than 2,"):
        digits.inpaint(Common(), path, [path])
    assert digits.seen(path).shape == (256, 256, 3)


def test_errors_are_escaped():
    from jcm.commands.demo import page

    shown = page._failed(JcmError("no <img src=x> here")).value
    assert "no &lt;img src=x&gt; here" in shown


def test_super_resolution_keeps_the_means_of_patches(digits):
    given = Image.fromarray(digits.picture(Common()))
    small, *made = digits.super_resolve(Common(count=2), given, 2).pictures
    for each in made:
        means = each.reshape(4, 64, 4, 64, 3).mean(axis=(1, 3))
        patches = small.reshape(4, 64, 4, 64, 3).mean(axis=(1, 3))
        # Pixels beyond black and white are clipped, which changes some means.
        assert np.median(np.abs(means - patches)) < 1
    with pytest.raises(JcmError, match="the factor 3 does not divide 8"):
        digits.super_resolve(Common(), given, 3)


def test_colorization_keeps_the_luma(colours):
    before, *made = colours.colorize(Common(count=2), _photo()).pictures
    assert before.shape == (256, 256, 3) and len(made) == 2
    assert (before == before[..., :1]).all()
    for each in made:
        assert (each != each[..., :1]).any()
        luma = np.asarray(Image.fromarray(each).convert("L"), np.float32)
        assert np.median(np.abs(luma - before[..., 0])) <= 1


def test_strokes_and_the_blank_paper_for_them(digits):
    paper = digits.paper()
    assert len(np.unique(paper)) == 1
    shown = digits.stroke_to_image(Common(count=3), Image.fromarray(paper), 5.38)
    assert len(shown.pictures) == 4 and "2 network evaluations" in shown.line
    assert 0.5 < digits.stroke_sigma() < 5.38


def test_interpolation_is_a_strip(digits):
    shown = digits.interpolate(Common(seed=0, count=5), 1)
    (strip,) = shown.pictures
    assert strip.shape[1] > 4 * strip.shape[0]


def test_the_page_answers_over_http(address, tmp_path):
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False, download_files=str(tmp_path))
    label = "any class"
    gallery, line = client.predict(0, 3, label, 1, api_name="/sample")
    assert len(gallery) == 3 and "1 network evaluation" in line
    _photo().save(tmp_path / "photo.png")
    photo = handle_file(tmp_path / "photo.png")
    gallery, _ = client.predict(0, 2, label, photo, 2, api_name="/super_resolve")
    assert len(gallery) == 3
    with Image.open(gallery[1]["image"]) as image:
        assert image.size == (256, 256)
    with pytest.raises(Exception, match="there is no picture yet"):
        client.predict(0, 2, label, None, 2, api_name="/super_resolve")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken = handle_file(tmp_path / "broken.png")
    with pytest.raises(Exception, match="cannot read broken.png .*: use another pic"):
        client.predict(0, 2, label, broken, 2, api_name="/super_resolve")
    with pytest.raises(Exception, match="To seed: enter a number"):
        client.predict(0, 2, label, None, api_name="/interpolate")
    with pytest.raises(Exception, match="Number of images=True must be a whole number"):
        client.predict(0, True, label, 1, api_name="/sample")
    with pytest.raises(Exception, match=r"Class=\[0\] is no choice: use one of any cl"):
        client.predict(0, 2, [0], 1, api_name="/sample")
    drawing = {"background": photo, "layers": [photo] * 14, "composite": None}
    with pytest.raises(Exception, match="14 layers are more than 8"):
        client.predict(0, 2, label, drawing, api_name="/inpaint")


@pytest.mark.skipif(_BROWSER is None, reason="neither chromium nor google-chrome")
def test_a_mask_is_drawn_in_a_browser(address):
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_BROWSER, args=flags)
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.set_default_timeout(90_000)

        def press(name):
            button = page.get_by_role("button", name=name, exact=True)
            button.locator("visible=true").click()

        def results():
            made = page.get_by_text("per picture").locator("visible=true")
            made.wait_for()
            gallery = page.locator("button.thumbnail-item img:visible")
            gallery.first.wait_for()
            return gallery

        page.goto(address)
        press("Sample")
        assert results().count() == 4

        page.get_by_role("tab", name="Inpaint").click()
        canvas = page.locator("canvas:visible").first
        canvas.wait_for()
        empty = canvas.screenshot()
        press("Inpaint")
        problem = page.get_by_role("alert").locator("visible=true")
        problem.wait_for()
        assert problem.inner_text().startswith("there is no picture yet: drop one")
        assert page.get_by_text("Error").locator("visible=true").count() == 0
        press("Take a sample")
        problem.wait_for(state="detached")
        _until(page, lambda: canvas.screenshot() != empty)
        box = canvas.bounding_box()
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

        def is_still():
            before = canvas.screenshot()
            page.wait_for_timeout(300)
            return canvas.screenshot() == before

        def is_drawn():
            """Draws a line, which the editor ignores while it loads the sample."""
            if not is_still():
                return False
            before = canvas.screenshot()
            page.mouse.move(middle[0] - 20, middle[1])
            page.mouse.down()
            page.mouse.move(middle[0] + 20, middle[1], steps=8)
            page.mouse.up()
            page.mouse.move(0, 0)  # The pointer is a part of the screenshot.
            return is_still() and canvas.screenshot() != before

        _until(page, is_drawn)
        press("Inpaint")
        assert results().count() == 5
        source = results().first.get_attribute("src")
        with Image.open(io.BytesIO(page.request.get(source).body())) as image:
            before = np.asarray(image)
        grey = (before == 127).all(axis=-1)
        # The hole is where it was drawn.
        assert 0 < grey.mean() < 0.5 and grey[128, 128]
        browser.close()


def _until(page, happened):
    for _ in range(100):
        if happened():
            return
        page.wait_for_timeout(100)
    raise AssertionError("nothing happened within 10 s")


def test_a_wrong_model_is_an_error_of_one_line(command):
    done = command("demo", "none")
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("jcm: there is no none: name a work")
    assert "Traceback" not in done.err
