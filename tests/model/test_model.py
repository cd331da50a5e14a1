"""Tests of what a Python user does first: the calls that people guess."""

import inspect
import subprocess
import sys

import jax
import jaxtyping
import numpy as np
import pytest
from PIL import Image

import jcm
from jcm.data import pictures
from jcm.diffusion.schedule import Schedule
from jcm.model import results
from jcm.model.pixels import sample_pixels
from jcm.runtime import arguments


@pytest.fixture(scope="module")
def model(student):
    return jcm.load(student[1], batch_size=8)


def test_the_first_guesses_work(model):
    images = model.sample(16)
    assert images.shape == (16, 8, 8, 1) and images.dtype == np.float32
    np.testing.assert_array_equal(model.sample(16, seed=0), images)
    np.testing.assert_array_equal(model.sample(count=16, sigmas=(80.0, 0.5)), images)
    np.testing.assert_array_equal(model.sample(16, seed=jax.random.key(0)), images)
    np.testing.assert_array_equal(model.sample(16, steps=2), images)
    one = model.sample(16, steps=1)
    np.testing.assert_array_equal(model.sample(16, sigmas=80.0), one)
    # The images of the commands are those of the same seed.
    pixels = sample_pixels(
        model.sampler, model.params, 0, range(16), Schedule((80.0, 0.5))
    )
    np.testing.assert_array_equal(jcm.to_uint8(images), pixels)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *(
            (lambda m, name=name: getattr(jcm, name), f"'{name}': use jcm.{meant}$")
            for name, meant in [
                *(("save_image", "save_png"), ("make_grid", "save_png")),
                *(("load_image", "open_pictures"), ("load_model", "load")),
                *(("lod", "load"), ("export", r"save\(model, folder\)")),
            ]
        ),
        (lambda m: jcm.sample, "module 'jcm' has no attribute 'sample': use model.sam"),
        (lambda m: jcm.edit, "'edit': use model.edit$"),
        (lambda m: jcm.xyz, "has no attribute 'xyz'$"),
        (lambda m: m.inpaint, "a Model has no .* 'inpaint': use model.edit.inpaint$"),
        (lambda m: m.save, r"'save': use jcm.save\(model, folder\)$"),
        (lambda m: m.score, r"'score': use jcm.evaluate\(model\)$"),
        (lambda m: m.generate, "'generate': use model.sample$"),
        (lambda m: m.smaple, "'smaple': use model.sample$"),
        (lambda m: m.edit.colourise, "'colourise': use model.edit.colorize$"),
        (lambda m: m.edit.upscale, "'upscale': use model.edit.super_resolve$"),
        (lambda m: m.edit.sdedit, "'sdedit': use model.edit.stroke_to_image$"),
        (lambda m: m.edit._repr_html_, "has no attribute '_repr_html_'$"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(model, call, message):
    with pytest.raises(AttributeError, match=message):
        call(model)


def test_every_name_that_is_suggested_exists(model):
    known = {"jcm": jcm, "model": model}
    for place in arguments._PLACES:
        eval(place.partition("(")[0], known)  # noqa: S307


def test_the_edits_are_listed(model):
    lines = repr(model.edit).splitlines()
    assert len(lines) == 9 and max(map(len, lines)) <= 88
    assert lines[1] == "  model.edit.inpaint          replaces what is under a mask"
    for line in lines[1:]:
        assert eval(line.split()[0], {"model": model}).__doc__  # noqa: S307
    with pytest.raises(jcm.JcmError, match="for each edit: call one, such as model.ed"):
        model.edit(np.zeros((1, 8, 8, 1)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.edit.variations(m, n=2), "'n': use variants"),
        (lambda m: m.edit.variations(m, count=2), "'count': use variants"),
        (lambda m: m.edit.variations(m, noise=2), "'noise': use sigma"),
        (lambda m: m.edit.variations(m, cls=2), "'cls': use labels"),
        (lambda m: m.sample(1, class_label=2), "'class_label': use labels"),
        (lambda m: m.edit.super_resolve(m, factor=2), r"'factor' \(super_resolve tak"),
        (lambda m: jcm.save_png(m, "x", ncol=2), "'ncol': use columns"),
        (lambda m: jcm.evaluate(m, metrics="fid"), "'metrics': use scores"),
        (lambda m: jcm.evaluate(m, n=2), "'n': use num_images"),
        (
            lambda m: m.sample(n=16),
            "sample has no argument 'n': use count .sample takes",
        ),
        (lambda m: m.sample(num_images=16), "'num_images': use count"),
        (lambda m: m.sample(4, step=2), "'step': use steps"),
        (lambda m: m.sample(4, key=2), "'key': use seed"),
        (lambda m: m.sample(4, output_type="pil"), "'output_type': use output"),
        (
            lambda m: m.sample(4, xyz=1),
            r"no argument 'xyz' \(sample takes count, seed, ",
        ),
        (lambda m: m.sample(0, 16), "takes count by position: name the other"),
        (lambda m: m.sample(), "sample: missing a required argument: 'count'"),
        (lambda m: m.sample(0), "count=0 must be at least 1"),
        (lambda m: m.sample(2.5), "count=2.5 must be a whole number"),
        (lambda m: m.sample("16"), "count='16' must be a whole number"),
        (lambda m: m.sample(1, steps="2"), "steps='2' must be a whole number"),
        (lambda m: m.sample(1, steps=2.0), "steps=2.0 must be a whole number"),
        (
            lambda m: m.sample(1, sigmas="80"),
            "sigmas='80' must be a number",
        ),
        (
            lambda m: m.edit.variations(np.zeros((1, 8, 8, 1)), steps="2"),
            "steps='2' must be a whole number",
        ),
        *(
            (
                lambda m, given=given: m.edit.interpolate(given),
                rf"takes seeds, such as \[0, 1\], not {text}$",
            )
            for given, text in [
                (np.zeros((2, 8, 8, 1), np.float32), "images"),
                ([Image.new("L", (8, 8))] * 2, "images"),
                (["a.png", "b.png"], "images"),
                (3, "3"),
            ]
        ),
        (lambda m: jcm.save("x", m), "save takes the model first, and then the fold"),
        (lambda m: jcm.load(np.zeros(3)), "this is of type ndarray$"),
        (lambda m: jcm.evaluate(np.zeros(3)), "which it samples, .* type ndarray$"),
        (lambda m: jcm.train(np.zeros(3)), "the config comes first: jcm.train"),
        (lambda m: jcm.train("digits_cd"), "did you mean configs/digits_cd.py"),
        (lambda m: m.denoise("x.png", 1.0), "is a path: read it with jcm.open_pic"),
        (
            lambda m: m.edit.inpaint(np.zeros((1, 8, 8, 1)), "m.png"),
            r"'m.png' is a path: pass PIL.Image.open\('m.png'\)",
        ),
        (lambda m: m.sample(1, seed=-1), "seed=-1 must be at least 0"),
        (lambda m: m.sample(1, seed="a"), "seed='a' must be a whole number"),
        (
            lambda m: m.sample(1, output="png"),
            "output='png' is unknown: use one of flo",
        ),
        (lambda m: m.sample(1, labels=3), "has no classes: drop"),
        (lambda m: m.sample(1, sigmas=(1.0, 2.0)), "must descend"),
        (lambda m: m.sample(1, steps=2, sigmas=(80.0,)), "steps and sigmas were both"),
        (
            lambda m: m.sample(1, steps=18),
            "steps=18 must be at least 1 and at most 11, since the model knows 12",
        ),
        (lambda m: m.sample(1, steps=0), "steps=0 must be at least 1"),
        (lambda m: m.sample(1, solver="heun"), "solver is for diffusion models"),
        (
            lambda m: m.denoise(np.zeros((1, 8, 8, 1), np.int32), 1.0),
            "x is int32: pass",
        ),
        (
            lambda m: m.denoise(np.zeros((1, 8, 8, 1)), (1.0, 2.0)),
            r"and one sigma or \(n,",
        ),
        (
            lambda m: m.denoise(np.zeros((1, 8, 8, 1)), sigmas=1.0),
            "'sigmas': use sigma",
        ),
        (
            lambda m: jcm.load("x", batchsize=3),
            "load has no argument 'batchsize': use b",
        ),
        (lambda m: jcm.open_pictures([], m), "there are no pictures"),
        (lambda m: jcm.open_pictures("none.png", m), "^there is no none.png: name a p"),
        (
            lambda m: m.denoise(np.full((1, 8, 8, 1), np.nan), 1.0),
            "x has values that are not finite",
        ),
        (
            lambda m: m.denoise(np.full((1, 8, 8, 1), 255.0), 1.0),
            "x ranges from 255 to 255, more than images in",
        ),
        (
            lambda m: m.denoise(np.full((1, 8, 8, 1), 200.0), 80.0),
            "x ranges from 200 to 200, more than images in",
        ),
        (lambda m: m.denoise(np.zeros((8, 8, 1)), 1.0), r"is one image: pass x\[None"),
    ],
)
def test_a_wrong_call_names_what_is_right(model, monkeypatch, call, message):
    # As without the tests, where no type is checked before the call.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(jcm.JcmError, match=message):
        call(model)


def test_output_has_the_form_that_is_asked_for(model):
    images = model.sample(3)
    pixels = model.sample(3, output="uint8")
    np.testing.assert_array_equal(pixels, jcm.to_uint8(images))
    pillow = model.sample(3, output="pil")
    assert [each.mode for each in pillow] == ["L"] * 3
    np.testing.assert_array_equal(
        np.stack(list(map(np.asarray, pillow))), pixels[..., 0]
    )
    assert results.converted(np.zeros((1, 8, 8, 3)), "pil")[0].mode == "RGB"
    with pytest.raises(jcm.JcmError, match="images of 2 channels are no pictures"):
        results.converted(np.zeros((1, 8, 8, 2)), "pil")


def test_trajectories_and_callbacks_see_every_step(model, teacher):
    seen = []
    options = {"trajectory": True, "callback": lambda *step: seen.append(step)}
    images, steps = model.sample(12, sigmas=(80.0, 0.5), **options)
    assert [(step, sigma, len(x)) for step, sigma, x in seen] == [
        *((1, 80.0, 8), (2, 0.5, 8)),
        *((1, 80.0, 4), (2, 0.5, 4)),
    ]
    np.testing.assert_allclose(steps[0], model.sample(12, sigmas=(80.0,)), atol=1e-6)
    np.testing.assert_allclose(steps[1], images, atol=1e-6)
    np.testing.assert_array_equal(seen[2][2], steps[0][8:])
    pixels, steps = model.sample(2, output="uint8", trajectory=True)
    np.testing.assert_array_equal(steps[-1], pixels)
    seen.clear()
    diffusion = jcm.load(teacher, batch_size=8)
    images, steps = diffusion.sample(2, steps=3, **options)
    assert [x.shape for x in steps] == [(2, 8, 8, 1)] * 3
    # The points begin at the highest noise level and end at the images.
    assert np.std(steps[0]) > 2 > np.std(images)
    np.testing.assert_array_equal(np.clip(steps[-1], -1, 1), images)
    assert [step for step, *_ in seen] == [1, 2, 3] and seen[0][1] == 80.0


def test_a_progress_bar_appears_only_if_it_takes_long(model, monkeypatch, capsys):
    model.sample(16)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(results, "_DELAY", 0)
    images = model.sample(16)
    assert "sample: 100%" in (text := capsys.readouterr().err) and "32/32" in text
    np.testing.assert_array_equal(model.sample(16, progress=False), images)
    assert capsys.readouterr().err == ""


def test_one_sigma_is_for_all_images(model):
    x = np.random.default_rng(0).standard_normal((3, 8, 8, 1)).astype(np.float32)
    want = model.denoise(x, np.full(3, 0.5))
    for sigma in (0.5, np.float32(0.5), jax.numpy.float32(0.5), [0.5] * 3):
        np.testing.assert_array_equal(model.denoise(x, sigma), want)
    np.testing.assert_allclose(jax.jit(model.denoise)(x, 0.5), want, atol=1e-5)


def test_a_model_describes_itself(model, teacher, tmp_path):
    line = repr(model).splitlines()[0]
    assert line == ("<jcm.Model: consistency, digits, 8x8x1, 7,201 parameters, step 8>")
    record = {"weights": model._digest, "samples": "1 step", "num_images": 1000}
    records = [record | {"scores": {"fid": value}} for value in (3.0, 4.0)]
    model = jcm.Model(
        model.denoiser,
        model.params,
        model.config,
        about=jcm.model.card.About(trained=False, scores=tuple(records)),
    )
    assert repr(model) == (
        "<jcm.Model: consistency, 8x8x1, 7,201 parameters>\n"
        "1 step: fid 3.5 of 1,000 images"
    )


def test_pictures_are_opened_as_the_command_does(model, tmp_path, colour_files, caplog):
    opened = jcm.open_pictures(tmp_path, model)
    assert len(caplog.messages) == 2
    assert caplog.messages[0].endswith(
        "a.png: 20x30 colour, cropped and resized to 8x8 grey"
    )
    assert opened.shape == (2, 8, 8, 1) and opened.dtype == np.float32
    paths = sorted(tmp_path.iterdir())
    for given in (paths, list(map(str, paths))):
        np.testing.assert_array_equal(jcm.open_pictures(given, model), opened)
    one = jcm.open_pictures(paths[1], model)
    np.testing.assert_array_equal(one, opened[1:])
    np.testing.assert_array_equal(jcm.to_uint8(one[0]), pictures.read(paths[1], 8, 1))
    assert jcm.open_pictures(str(paths[0]), model, size=4).shape == (1, 4, 4, 1)


@pytest.fixture
def colour_files(tmp_path):
    rng = np.random.default_rng(0)
    upright = Image.fromarray(rng.integers(0, 256, (30, 20, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    upright.save(tmp_path / "b.jpg", exif=exif)
    upright.save(tmp_path / "a.png")


def test_help_and_dir_show_everything():
    names = set(jcm.__all__)
    assert names <= set(dir(jcm))
    assert {"load", "save", "train", "evaluate", "Model", "to_uint8"} <= names
    for name in names - {"__version__"}:
        assert inspect.getdoc(getattr(jcm, name)), name
    with pytest.raises(AttributeError, match="module 'jcm' has no attribute 'lod'"):
        _ = jcm.lod


def test_importing_jcm_imports_nothing_else():
    program = "import jcm, sys; print('jax' in sys.modules, jcm.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", jcm.__version__]
