"""Tests of weights and images that are not finite, and of images of another type."""

import dataclasses

import golden
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import originals
import pytest
from flax import serialization

import jcm
from jcm.data import images
from jcm.diffusion import edits
from jcm.methods import Batch, distances
from jcm.metrics import lpips
from jcm.metrics import weights as metric_weights
from jcm.pretrained import torch_file
from jcm.run.checkpoints import Checkpoints
from jcm.run.state import State
from jcm.runtime import files, hashes
from jcm.runtime.arrays import check_finite
from jcm.training import prepare


@pytest.fixture(scope="module")
def model(student):
    return jcm.load(student[1], batch_size=8)


def _broken(params, value=np.nan):
    """Returns weights of which a single one is not finite."""
    broken = jax.tree.map(np.array, params)
    broken["conv_in"]["kernel"].flat[3] = value
    return broken


def _of_workdir(model, folder, monkeypatch):
    read = Checkpoints.restore_part
    broken = lambda *args: _broken(read(*args)["0.99"])  # noqa: E731
    monkeypatch.setattr(Checkpoints, "restore_part", lambda *a: {"0.99": broken(*a)})
    return model.workdir


def _of_saved_folder(model, folder, monkeypatch):
    jcm.save(model, folder)
    tensors = files.read_tensors(folder / "params.safetensors")
    tensors["conv_in/kernel"] = np.full_like(tensors["conv_in/kernel"], np.inf)
    files.write_tensors(folder / "params.safetensors", tensors, {"format": "jcm"})
    hashes.write_folder(folder)
    return folder


def _of_original_code(model, folder, monkeypatch):
    state = originals.state()
    kernel = next(iter(golden.original_params("params_ema")))
    *path, leaf = kernel.split("/")
    tree = state["params_ema"]
    for name in path:
        tree = tree[name]
    tree[leaf] = np.full_like(tree[leaf], np.nan)
    folder.write_bytes(serialization.to_bytes(state))
    return folder


@pytest.mark.parametrize("way", [_of_workdir, _of_saved_folder, _of_original_code])
def test_loading_refuses_weights_that_are_not_finite(model, tmp_path, monkeypatch, way):
    path = way(model, tmp_path / "checkpoint_2", monkeypatch)
    hints = {"image_size": 16} if way is _of_original_code else {}
    with pytest.raises(
        jcm.JcmError, match=f"^{path}: the weights .* are not finite: use an earlier"
    ):
        jcm.load(path, **hints)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_model_takes_no_weights_that_are_not_finite(model, value):
    broken = _broken(model.params, value)
    message = "^the weights conv_in/kernel are not finite: use an earlier checkpoint"
    with pytest.raises(jcm.JcmError, match=message):
        jcm.Model(model.denoiser, broken, model.config)
    other = jcm.Model(model.denoiser, model.params, model.config)
    with pytest.raises(jcm.JcmError, match=message):
        other.params = jax.tree.map(jnp.asarray, broken)
    assert other.params is model.params


def test_other_weights_have_another_fingerprint(model):
    other = jcm.Model(model.denoiser, model.params, model.config)
    assert other._digest == model._digest
    other.params = jax.tree.map(lambda leaf: leaf + 1, model.params)
    assert other._digest != model._digest


def test_a_run_does_not_resume_with_averages_that_are_not_finite(model):
    fields = dict.fromkeys([each.name for each in dataclasses.fields(State)])
    fields |= {"step": jnp.int32(4), "params": model.params}
    assert prepare._finite(State(**fields)).step == 4
    fields["ema_params"] = {"0.99": _broken(model.params)}
    with pytest.raises(
        jcm.JcmError, match="weights ema_params/0.99/conv_in/kernel are not finite: del"
    ):
        prepare._finite(State(**fields))


def test_networks_of_scores_are_finite_too(tmp_path, monkeypatch):
    monkeypatch.setitem(metric_weights.FILES, "x", metric_weights.File("x.pth", "", ""))
    (tmp_path / "x.pth").touch()
    monkeypatch.setattr(torch_file, "load", lambda _: {"a": np.full(2, np.nan)})
    with pytest.raises(jcm.JcmError, match=r"weights a are not finite: .*x.pth is dam"):
        metric_weights.read("x", tmp_path)


def test_what_is_no_array_of_floats_is_not_checked():
    check_finite({"a": np.arange(3), "b": None, "c": 3.0}, "")
    jax.jit(lambda x: check_finite({"a": x}, "") or x)(jnp.full(2, jnp.nan))


def test_images_that_are_not_finite_are_no_pictures(model, monkeypatch):
    for xp in (np, jnp):
        for value in (np.nan, np.inf):
            with pytest.raises(jcm.JcmError, match="images have values that are not f"):
                jcm.to_uint8(xp.full((1, 2, 2, 1), value, np.float32))
    # Finite weights can make such images, too.
    huge = jax.tree.map(lambda leaf: leaf * 1e30, model.params)
    other = jcm.Model(model.denoiser, huge, model.config, batch_size=8)
    for output in ("float", "uint8", "pil"):
        with pytest.raises(jcm.JcmError, match="makes images that are not finite: use"):
            other.sample(2, output=output)
    with pytest.raises(jcm.JcmError, match="makes images that are not finite: use"):
        other.denoise(model.sample(2), 0.5)
    # Clipping would turn infinity into white.
    editor = model.edit
    monkeypatch.setattr(editor, "_denoise", lambda x, *_: jnp.full_like(x, jnp.inf))
    with pytest.raises(jcm.JcmError, match="makes images that are not finite: use"):
        editor.denoise(model.sample(2), sigma=0.5)
    assert np.isfinite(model.sample(2)).all()


# --- images of another type


def test_pixels_are_converted_as_edits_convert_them(model):
    pixels = model.sample(2, output="uint8")
    want = model.denoise(jcm.to_float(pixels), 0.5)
    for given in (pixels, jnp.asarray(pixels)):
        np.testing.assert_allclose(model.denoise(given, 0.5), want, atol=1e-6)
    edited = model.edit.denoise(pixels, sigma=0.5)
    np.testing.assert_array_equal(np.clip(want, -1, 1), edited)


_PIXELS = np.full((2, 8, 8, 1), 200, np.uint8)


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x: m.denoise(x.astype(np.int32), 0.5),
        lambda m, x: m.denoiser(m.params, x, np.full(2, 0.5, np.float32)),
        lambda m, x: m.sampler(m.params, jax.random.key(0), [0, 1], None, origin=x),
        lambda m, x: edits.known(edits.Pixels(), x, np.ones(1)),
        lambda m, x: edits.noise_level(x),
        lambda m, x: edits.slerp(x, x, 0.5),
        lambda m, x: m.edit.between(x),
        lambda m, x: distances.l1(x, x),
        lambda m, x: distances.pseudo_huber(images.to_float(x), x, c=0.03),
        lambda m, x: Batch(x, None, jax.random.split(jax.random.key(0)), None).normal(
            0
        ),
        lambda m, x: lpips.Perceptual({}, None, 64, "float32")({}, x, x),
        lambda m, x: jcm.to_uint8(x),
    ],
)
def test_pixels_are_not_taken_for_floats(model, monkeypatch, call):
    # As without the tests, where no type is checked before the call.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(
        jcm.JcmError, match=r"(uint8|int32).*: pass floats|takes floats"
    ):
        call(model, _PIXELS)


@pytest.mark.parametrize("kind", ["edit", "sample"])
def test_a_command_writes_nothing_of_such_a_model(model, tmp_path, kind):
    from jcm.commands.edit import Request, edit
    from jcm.commands.sample import sample

    _of_saved_folder(model, tmp_path / "model", None)
    jcm.save_png(np.zeros((8, 8, 1), np.uint8), tmp_path / "x.png", scale=1)
    config = model.config.copy_and_resolve_references()
    config.sample.model = str(tmp_path / "model")
    request = Request("variations", str(tmp_path / "x.png"), str(tmp_path / "out"))
    with pytest.raises(jcm.JcmError, match="conv_in/kernel are not finite"):
        if kind == "edit":
            edit(config, tmp_path / "w", request)
        else:
            sample(config, tmp_path / "w")
    assert not (tmp_path / "out").exists() and not (tmp_path / "w").exists()
