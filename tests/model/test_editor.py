"""Tests of editing: golden numbers, exact constraints, and errors."""

import dataclasses
import functools
import inspect
import io

import golden
import jax
import jax.numpy as jnp
import numpy as np
import originals
import pytest
from PIL import Image

import jcm
from jcm import methods
from jcm.diffusion import edits, precond
from jcm.diffusion.denoiser import Denoiser
from jcm.diffusion.edits import Colours, Patches, Pixels
from jcm.diffusion.schedules import KarrasGrid
from jcm.model import build
from jcm.model.loading import load
from jcm.model.options import Keywords, Options

# --- golden numbers


def _known(name, case):
    if name == "inpainting":
        return edits.known(Pixels(), case["known"], 1 - case["mask"])
    return edits.known(Colours(), case["known"], jnp.asarray([0.0, 1.0, 1.0]))


@pytest.mark.parametrize("name", ["inpainting", "colorization"])
@pytest.mark.parametrize("start", ["sample_start80", "sample"])
def test_editing_equals_the_original(name, start):
    case = golden.cases("D_samplers_editing.npz")[name]
    known = _known(name, case)
    grid = KarrasGrid().sigmas(int(case["train_N"]))
    sigmas = jnp.asarray([grid[i] for i in case["ts"]], jnp.float32)
    # The paper starts with noise. The original notebook takes an index as its level.
    noise = 80 * case["z0"] if start == "sample_start80" else 0
    x = known.origin() + noise
    assert golden.relative(known.origin(), case["known"]) < 1e-6
    network = golden.raw(golden.compiled(), golden.params("params_ema"))
    step = functools.partial(precond.Consistency().step, network, restore=known)
    for i, z in enumerate(case["noise"]):
        x, x0 = step(x, sigmas[i], sigmas[i + 1], z, solver="consistency")
    assert golden.relative(x, case[start]) < 1e-4
    assert golden.relative(x0, case[start]) < 1e-4


def test_interpolation_equals_the_original():
    case = golden.cases("D_samplers_editing.npz")["interpolation"]
    z = [edits.slerp(case["z1"], case["z2"], float(share)) for share in case["lam"]]
    assert golden.relative(jnp.stack(z), case["z"]) < 1e-6
    denoiser = Denoiser(golden.compiled(), precond.Consistency())
    params = golden.params("params_ema")
    x0 = denoiser(params, 80 * jnp.stack(z), jnp.full(len(z), 80.0))
    assert golden.relative(x0, case["sample"]) < 1e-4


# --- mathematics


@pytest.mark.parametrize("coordinates", [Pixels(), Colours(), Patches(2), Patches(4)])
def test_coordinates_are_invertible_and_keep_lengths(coordinates):
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    u = coordinates.forward(x)
    np.testing.assert_allclose(coordinates.inverse(u), x, atol=2e-6)
    np.testing.assert_allclose(jnp.sum(u**2), jnp.sum(x**2), rtol=1e-5)


def test_the_first_coordinates_are_luma_and_means():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    luma = np.asarray(edits.LUMA)
    found = Colours().forward(x)[..., 0] * np.linalg.norm(luma)
    np.testing.assert_allclose(found, x @ luma, atol=1e-5)
    means = x.reshape(2, 2, 4, 2, 4, 3).mean((2, 4))
    np.testing.assert_allclose(Patches(4).forward(x)[:, ::4, ::4] / 4, means, atol=1e-6)


def test_slerp_keeps_the_length_and_has_its_ends():
    a, b = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    np.testing.assert_allclose(edits.slerp(a, b, 0.0), a, atol=1e-6)
    np.testing.assert_allclose(edits.slerp(a, b, 1.0), b, atol=1e-6)
    a, b = (v / jnp.linalg.norm(v) for v in (a, b))
    length = jnp.linalg.norm(edits.slerp(a, b, 0.3))
    np.testing.assert_allclose(length, 1.0, rtol=1e-5)
    np.testing.assert_allclose(edits.slerp(a, 2 * a, 0.5), 1.5 * a, rtol=1e-5)
    with pytest.raises(jcm.JcmError, match="have opposite directions"):
        edits.slerp(a, -a, 0.5)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 3.0])
def test_the_noise_level_is_estimated(sigma):
    smooth = np.sin(np.arange(32) / 9)[:, None, None] * np.ones((2, 32, 32, 3))
    noise = np.random.default_rng(0).standard_normal(smooth.shape)
    found = edits.noise_level(smooth + sigma * noise)
    np.testing.assert_allclose(found, sigma, rtol=0.06)


# --- a model's edits


@pytest.fixture(scope="module")
def digits(student):
    """A model of 8x8 grey images, and some images."""
    found = load(student[1], batch_size=8)
    rng = np.random.default_rng(0)
    return found, rng.integers(0, 256, (3, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """A model of the original code with 16x16 colour images, and some images."""
    path = originals.write(tmp_path_factory.mktemp("colours") / "checkpoint")
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    return jcm.load(path, image_size=16, batch_size=8), images


_FEW = {"sigmas": (80.0, 5.0, 0.5)}


def test_inpainting_keeps_the_known_part_to_the_bit(digits):
    found, images = digits
    mask = np.zeros((8, 8))
    mask[2:6, 2:6] = 1
    given = jcm.to_float(images)
    made = found.edit.inpaint(images, mask, variants=3, **_FEW)
    assert made.shape == (9, 8, 8, 1)
    for i in range(9):
        np.testing.assert_array_equal(made[i][mask == 0], given[i // 3][mask == 0])
    assert np.ptp(made[:3], axis=0)[mask == 1].max() > 1e-3
    # The pixels under the mask do not matter.
    hidden = images.copy()
    hidden[:, 2:6, 2:6] = 7
    again = found.edit.inpaint(hidden, mask, variants=3, **_FEW)
    np.testing.assert_array_equal(again, made)
    options = {"variants": 3, **_FEW}
    pixels = found.edit.inpaint(images, mask, output="uint8", **options)
    np.testing.assert_array_equal(pixels, jcm.to_uint8(made))
    np.testing.assert_array_equal(pixels[0][mask == 0], images[0][mask == 0])
    (first, *_) = found.edit.inpaint(images, mask, output="pil", **options)
    np.testing.assert_array_equal(np.asarray(first), pixels[0, ..., 0])


def test_a_result_depends_only_on_its_number_and_the_seed(digits):
    found, images = digits
    mask = np.ones((3, 8, 8))
    mask[:, :, :3] = 0
    all_at_once = found.edit.inpaint(images, mask, seed=5, **_FEW)
    first = found.edit.inpaint(images[:1], mask[:1], seed=5, **_FEW)
    np.testing.assert_allclose(first[0], all_at_once[0], atol=1e-6)
    other = found.edit.inpaint(images, mask, seed=6, **_FEW)
    assert np.abs(other - all_at_once).max() > 1e-3


def test_a_soft_mask_mixes_after_each_step(digits):
    found, images = digits
    x = jcm.to_float(images)
    free = np.random.default_rng(1).uniform(size=(8, 8)).astype(np.float32)
    made, steps = found.edit.inpaint(images, free, sigmas=(3.0, 1.0), trajectory=True)
    # The first step by hand, from the known part, zeros for the rest, and noise.
    known = x * (1 - free[..., None])
    clean = np.clip(found.edit.variations(known, sigma=3.0), -1, 1)
    first = known + clean * free[..., None]
    np.testing.assert_allclose(steps[0], first, atol=1e-5)
    # The two programs differ in the last bit.
    np.testing.assert_allclose(steps[1], made, atol=1e-6)
    assert np.abs(steps[1] - steps[0]).max() > 0.01


def test_trajectories_have_all_images_of_all_batches(digits):
    found, images = digits
    images = np.repeat(images, 4, axis=0)  # More than one batch.
    mask = np.full((8, 8), 0.5)
    seen = []
    made, steps = found.edit.inpaint(
        images,
        mask,
        trajectory=True,
        callback=lambda *step: seen.append(step),
        **_FEW,
    )
    assert [len(step) for step in steps] == [12, 12, 12]
    one = found.edit.inpaint(images, mask, sigmas=_FEW["sigmas"][:1])
    np.testing.assert_allclose(steps[0], one, atol=1e-5)
    # The callback gets the same images, batch after batch.
    numbers = [(step, sigma, len(x)) for step, sigma, x in seen]
    levels = list(enumerate(_FEW["sigmas"], start=1))
    assert numbers == [(*each, 8) for each in levels] + [(*each, 4) for each in levels]
    np.testing.assert_array_equal(seen[4][2], steps[1][8:])
    # Parts have the same noise, because each number has its own.
    parts = [
        found.edit.inpaint(images[i : i + 5], mask, first=i, **_FEW) for i in (0, 5, 10)
    ]
    np.testing.assert_allclose(np.concatenate(parts), made, atol=1e-5)


def test_colorization_keeps_the_luma(colours):
    found, images = colours
    made = found.edit.colorize(images, **_FEW)
    luma = np.asarray(edits.LUMA, np.float32)
    np.testing.assert_allclose(made @ luma, images @ luma, atol=2e-6)
    assert np.abs(made - images).max() > 0.1


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_super_resolution_keeps_the_means_of_patches(colours, factor):
    found, images = colours
    size = 16 // factor
    small = images[:, :size, :size]
    made = found.edit.super_resolve(small, **_FEW)
    means = made.reshape(2, size, factor, size, factor, 3).mean((2, 4))
    np.testing.assert_allclose(means, small, atol=2e-6)


def test_outpainting_keeps_the_given_part(digits):
    found, images = digits
    made = found.edit.outpaint(images[:, :4, :5], top=1, left=3, **_FEW)
    np.testing.assert_array_equal(jcm.to_uint8(made)[:, 1:5, 3:8], images[:, :4, :5])
    with pytest.raises(jcm.JcmError, match="5x4 at top=5, left=0 do not fit into 8x8"):
        found.edit.outpaint(images[:, :4, :5], top=5)


def test_strokes_and_variations_start_at_the_noise_levels_of_the_paper(digits):
    found, images = digits
    x = jcm.to_float(images)
    for made, levels in (
        (found.edit.stroke_to_image(images), (5.38, 2.24)),
        (found.edit.variations(images), (2.0,)),
    ):
        want = found.edit.stroke_to_image(images, sigmas=levels)
        np.testing.assert_array_equal(made, want)
    close = found.edit.variations(images, sigma=0.01)
    assert np.abs(close - x).max() < 0.2


def test_denoising_is_one_evaluation(digits):
    found, images = digits
    noise = np.random.default_rng(0).standard_normal(images.shape)
    x = (jcm.to_float(images) + 4 * noise).astype(np.float32)
    levels = edits.noise_level(x).astype(np.float32)
    for made, sigma in (
        (found.edit.denoise(x, sigma=0.5), np.full(3, 0.5)),
        (found.edit.denoise(x, sigma=(0.1, 0.5, 2.0)), np.float32([0.1, 0.5, 2.0])),
        (found.edit.denoise(x), levels),
    ):
        want = np.clip(found.denoise(x, sigma), -1, 1)
        np.testing.assert_allclose(made, want, atol=1e-6)
    pixels = found.edit.denoise(x, output="uint8")
    np.testing.assert_array_equal(pixels, jcm.to_uint8(found.edit.denoise(x)))


def test_interpolation_passes_through_the_images_of_the_seeds(digits):
    found, _ = digits
    way = found.edit.interpolate((1, 2, 3), count=3)
    assert way.shape == (5, 8, 8, 1)
    a, b, c = (jax.random.normal(jax.random.key(seed), (8, 8, 1)) for seed in (1, 2, 3))
    points = [a, edits.slerp(a, b, 0.5), b, edits.slerp(b, c, 0.5), c]
    start = np.float32(80.0) * np.stack(points)
    want = np.clip(found.denoise(start, np.full(5, 80.0)), -1, 1)
    np.testing.assert_allclose(way, want, atol=1e-5)
    _, steps = found.edit.interpolate((1, 2), sigmas=(80.0, 0.5), trajectory=True)
    assert len(steps) == 2


def test_steps_choose_noise_levels_that_begin_like_those_of_the_paper(digits):
    found, images = digits
    levels = found.edit.sigmas("inpaint", 39)
    assert levels == found.edit.sigmas("inpaint") and len(levels) == 39
    assert found.edit.sigmas("stroke_to_image", 2) == (5.38, 2.24)
    three = found.edit.sigmas("stroke_to_image", 3)
    assert len(three) == 3 and three[0] == 5.38 and three[-1] > 0.002
    for task, sigma in (("stroke_to_image", 5.38), ("variations", 2.0)):
        edit = getattr(found.edit, task)
        want = edit(images, sigmas=KarrasGrid(0.002, sigma, 7.0).sigmas(4)[:-1])
        np.testing.assert_array_equal(edit(images, steps=3), want)
        np.testing.assert_array_equal(
            edit(images, steps=1), edit(images, sigmas=(sigma,))
        )


def test_type_checkers_know_the_options():
    declared = {field.name: str(field.type) for field in dataclasses.fields(Options)}
    assert {k: str(v) for k, v in Keywords.__annotations__.items()} == declared


def test_help_shows_the_options_of_each_edit(digits):
    found, _ = digits
    for name in ("inpaint", "outpaint", "variations", "interpolate", "run"):
        method = getattr(found.edit, name)
        assert {"seed", "variants", "callback"} <= set(
            inspect.signature(method).parameters
        )
        text = inspect.getdoc(method)
        assert "options" not in text and "  callback: called as `callback(" in text


@pytest.fixture(scope="module")
def classes(tiny):
    """A random class-conditional model that depends on its labels."""
    config = tiny("digits_cd", **{"model.class_conditional": True, "sample.labels": ()})
    network = build.network(config, 10)
    leaves, tree = jax.tree.flatten(network.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [
        leaf + 0.2 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    names = [str(i) for i in range(10)]
    denoiser = methods.denoiser(config, network)
    return jcm.Model(denoiser, tree.unflatten(leaves), config, names, batch_size=8)


def test_each_image_is_edited_with_its_label(classes):
    images = np.zeros((2, 8, 8, 1), np.uint8)
    options = {"sigma": 5.0, "variants": 2}
    made = classes.edit.variations(images, labels=[3, "4"], **options)
    for label, mine in ((3, slice(0, 2)), (4, slice(2, 4))):
        alike = classes.edit.variations(images, labels=label, **options)
        np.testing.assert_allclose(made[mine], alike[mine], atol=1e-5)
        assert np.abs(made - alike)[2 - mine.start : 4 - mine.start].max() > 1e-3
    with pytest.raises(jcm.JcmError, match="3 labels for 2 images: pass one for each"):
        classes.edit.variations(images, labels=[1, 2, 3])


def test_interpolation_keeps_one_class(classes):
    way = classes.edit.interpolate((1, 1), count=3)
    np.testing.assert_allclose(way[1:], way[:2], atol=1e-5)
    other = classes.edit.interpolate((1, 1), count=3, labels=7)
    assert np.abs(other - way).max() > 1e-3


def test_all_kinds_of_images_are_accepted(digits, colours, caplog):
    found, images = digits
    mask = Image.fromarray(np.eye(8, dtype=np.uint8) * 255)
    want = found.edit.inpaint(images[:1], np.eye(8), **_FEW)
    for given in (
        images[0],
        jcm.to_float(images[:1]),
        Image.fromarray(images[0, ..., 0]),
        [Image.fromarray(images[0, ..., 0]).convert("RGB")],
        [Image.fromarray(images[0, ..., 0]).convert("P")],
        [Image.fromarray(images[0, ..., 0].astype(np.uint16) * 257)],
        [Image.fromarray(images[0, ..., 0].astype(np.int32))],
        [Image.fromarray(images[0, ..., 0] / np.float32(255))],
        [images[0]],
    ):
        made = found.edit.inpaint(given, mask, **_FEW)
        np.testing.assert_allclose(made, want, atol=1e-6)
    assert "an image of mode RGB is converted to L" in caplog.text
    grey = Image.fromarray(np.zeros((16, 16), np.uint8))
    for given in (grey, np.full((16, 16, 1), 0, np.uint8)):
        made = colours[0].edit.colorize(given, **_FEW)
        assert made.shape == (1, 16, 16, 3)


def test_pictures_of_any_size_are_edited_as_by_the_command(digits, caplog):
    found, _ = digits
    exif = Image.Exif()
    exif[0x0112] = 6  # stored with the left side up
    content = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 256, (12, 16), np.uint8)
    Image.fromarray(values).save(content, "PNG", exif=exif)
    photo = Image.open(content)
    seen = np.rot90(values, -1)
    mask = np.zeros(seen.shape, np.uint8)
    mask[7, 5] = 255  # a dot
    free = np.zeros((8, 8))
    free[3, 3] = 1
    square = seen[2:14].astype(np.float32)
    box = Image.fromarray(square).resize((8, 8), Image.Resampling.BOX)
    want = np.rint(np.asarray(box))
    made = found.edit.inpaint(photo, Image.fromarray(mask), output="uint8", **_FEW)
    assert np.abs(made[0, ..., 0] - want)[free == 0].max() <= 1
    again = found.edit.inpaint(made, free, output="uint8", **_FEW)
    np.testing.assert_array_equal(again[0][free == 0], made[0][free == 0])
    assert "an image of 12x16 is cropped and resized to 8x8" in caplog.text
    for stored in (mask.T, mask[:8]):
        with pytest.raises(jcm.JcmError, match="another aspect ratio than image 0 of"):
            found.edit.inpaint([photo], Image.fromarray(stored))
    with pytest.raises(jcm.JcmError, match="mask of 12x16 is not square, but image 0"):
        found.edit.inpaint(made, Image.fromarray(mask))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e, x: e.inpaint(x, np.zeros((8, 8))), "zero everywhere: mark the"),
        (
            lambda e, x: e.inpaint(x, np.ones((4, 4))),
            r"mask has shape \(4, 4\): pass \(8",
        ),
        (lambda e, x: e.inpaint(x, np.full((8, 8), 2.0)), r"outside \[0, 1\]: use"),
        (lambda e, x: e.inpaint(x[:, :4], np.ones((8, 8))), r"takes \(n, 8, 8, 1\)"),
        (
            lambda e, x: e.inpaint(x.astype(int), np.ones((8, 8))),
            "images are int64: pass uint8",
        ),
        (lambda e, x: e.super_resolve(x[:, :3, :3]), "of 3x3: height and width must"),
        (lambda e, x: e.super_resolve(x), "of 8x8: height and width must be the same"),
        (lambda e, x: e.colorize(x), "the model makes grey images"),
        (lambda e, x: e.variations(x, sigma=100.0), "within the model's noise levels"),
        (lambda e, x: e.denoise(x, sigma=0.0), "within the model's noise levels"),
        (
            lambda e, x: e.inpaint(x, np.ones((8, 8)), sigmas=(1.0, 2.0)),
            "must descend",
        ),
        (lambda e, x: e.inpaint(x, np.ones((8, 8)), variants=0), "must be at least 1"),
        (
            lambda e, x: e.variations(x.astype(np.float32)),
            "images range from .* pass uint8",
        ),
        (lambda e, x: e.variations("a.png"), "is a path: read it with jcm.open_pict"),
        (lambda e, x: e.variations(x, steps=0), "steps=0 must be at least 1"),
        (
            lambda e, x: e.variations(x, steps=1, sigmas=(1.0,)),
            "steps and sigmas were both",
        ),
        (
            lambda e, x: e.variations(x, output="png"),
            "output='png' is unknown: use one",
        ),
        (lambda e, x: e.variations(x, n=2), "variations has no argument 'n'"),
        (
            lambda e, x: e.variations(x, variant=2),
            "'variant': use variants .variations",
        ),
        (
            lambda e, x: e.variations(),
            "variations: missing a required argument: 'given'",
        ),
        (lambda e, x: e.variations(x[..., 0]), "has shape|have shape .*adds a grey"),
        (lambda e, x: e.variations(x[:0]), "no images: pass at least one"),
        (lambda e, x: e.variations([]), "no images: pass at least one"),
        (lambda e, x: e.variations(["a.png"]), "must hold arrays of shape"),
        (lambda e, x: e.variations([x[0], x[0, :4]]), "images have several sizes"),
        (
            lambda e, x: e.inpaint(x, np.stack([np.eye(8)] * 2 + [np.zeros((8, 8))])),
            "zero everywhere",
        ),
        (
            lambda e, x: e.inpaint(x, Image.new("RGBA", (8, 8))),
            "the mask has transparency",
        ),
        (lambda e, x: e.denoise(jcm.to_float(x), (0.5, 1)), "2 noise levels for 3"),
        (lambda e, x: e.variations(x, seed=2**40), "at least 0 and below 2"),
        (
            lambda e, x: e.run(
                edits.known(edits.Pixels(), jcm.to_float(x[:, :4]), np.ones(()))
            ),
            r"takes \(n, 8, 8, 1\)",
        ),
        (
            lambda e, x: e.run(
                edits.known(edits.Patches(3), jcm.to_float(x), np.ones(()))
            ),
            "patches of 3x3 do not divide 8x8",
        ),
        (lambda e, x: e.inpaint(x, np.ones((8, 8)), labels=3), "has no classes: drop"),
        (lambda e, x: e.interpolate((1,)), "needs at least two seeds"),
        (lambda e, x: e.inpaint(x * np.nan, np.ones((8, 8))), "not finite: remove"),
    ],
)
def test_impossible_edits_raise(digits, call, message):
    found, images = digits
    with pytest.raises(jcm.JcmError, match=message):
        call(found.edit, images)


def test_editing_with_a_diffusion_model_raises(teacher):
    with pytest.raises(jcm.JcmError, match="this is a diffusion model: load an"):
        _ = load(teacher).edit
