"""Tests of perceptual distances against golden numbers and the authors' code."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_weights

from jcm import config as config_lib
from jcm.methods import Batch, Frozen, distances
from jcm.metrics import lpips, weights
from jcm.metrics.networks import classifiers, layers
from jcm.runtime.errors import JcmError

_TAPS = {
    "vgg": classifiers.vgg16,
    "alex": classifiers.alexnet,
    "squeeze": classifiers.squeezenet,
}


@functools.cache
def _original(size, dtype="float32"):
    """LPIPS with the random weights that the golden numbers were made with."""
    made = torch_weights.lpips_vgg()
    heads = {name: jnp.asarray(w) for name, w in made.items() if name[:4] == "head"}
    maps = lpips.on_imagenet_pixels(classifiers.vgg16)
    return lpips.Perceptual(classifiers.params(made) | heads, maps, size, dtype)


def _value_and_gradient(distance, a, b):
    return _compiled(distance, distance.params, a, b)


# The weights are an argument, because constants take long to compile.
@functools.partial(jax.jit, static_argnums=0)
def _compiled(distance, params, a, b):
    def total(a):
        found = distance(params, a, b)
        return jnp.sum(found), found

    (_, found), gradient = jax.value_and_grad(total, has_aux=True)(a)
    return found, gradient


def test_lpips_equals_the_original():
    case = golden.cases("B_lpips.npz")["dist"]
    found, gradient = _value_and_gradient(_original(224), case["a"], case["b"])
    assert golden.relative(found, case["lpips_224"]) < 1e-4
    # Rounding decides which of two nearly equal pixels is the maximum, and so changes a
    # patch of the gradient. The original's own gradient differs from that of float64 by
    # up to 2.5e-3, and by more than 1e-4 in one entry of ten.
    theirs = np.asarray(case["lpips_224_grad_a"])
    error = np.abs(np.asarray(gradient) - theirs) / np.abs(theirs).max()
    least = 0.99 if jax.__version_info__ < (0, 11) else 0.94
    assert np.mean(error < 1e-4) > least
    assert error.max() < 3e-3
    resized = jax.image.resize(case["a"][0], (224, 224, 3), "bilinear")[:16, :16]
    assert golden.relative(resized, case["resized_a0"]) < 1e-5
    not_resized = _original(0)
    found = not_resized(not_resized.params, case["a"], case["b"])
    assert golden.relative(found, case["lpips_32_noresize"]) < 1e-4


def test_distillation_by_lpips_equals_the_original():
    case = golden.cases("B_lpips.npz")["cd_heun_lpips_N18"]
    method = golden.consistency(distance=_original(224))
    frozen = Frozen(
        teachers={"diffusion": golden.params("params_ema")}, constants=method.constants
    )

    def loss(params, frozen):
        keys = jax.random.split(jax.random.key(0), 4)
        batch = Batch(case["x"], None, keys, jnp.arange(4))
        return jnp.mean(
            method.loss_at(params, frozen, batch, case["indices"], 18, case["z"])
        )

    value, gradient = jax.jit(jax.value_and_grad(loss))(golden.params("params"), frozen)
    np.testing.assert_allclose(value, case["loss"], rtol=1e-4)
    np.testing.assert_allclose(golden.norm(gradient), case["grad_norm"], rtol=1e-3)


@pytest.mark.parametrize("name", _TAPS)
def test_each_network_equals_the_code_of_the_authors(name):
    theirs = torch_weights.theirs(f"lpips_{name}")
    params = classifiers.params(torch_weights.random(f"lpips_{name}", 31))
    params |= {key: jnp.asarray(w) for key, w in theirs.items() if key[:4] == "head"}
    distance = lpips.Perceptual(
        params, lpips.on_imagenet_pixels(_TAPS[name]), 0, "float32"
    )
    rng = np.random.RandomState(32)
    a, b = (jnp.asarray(rng.uniform(-1, 1, (2, 67, 67, 3)), "f4") for _ in range(2))
    found, gradient = _value_and_gradient(distance, a, b)
    assert golden.relative(found, theirs["distance"]) < 1e-5
    assert golden.relative(gradient[:, ::5, ::7], theirs["gradient"]) < 1e-4


def test_bfloat16_is_close_to_float32():
    case = golden.cases("B_lpips.npz")["dist"]
    rough = _original(0, "bfloat16")
    found = rough(rough.params, case["a"], case["b"])
    assert found.dtype == jnp.float32
    assert golden.relative(found, case["lpips_32_noresize"]) < 0.05


@pytest.mark.parametrize("channels", [1, 3])
def test_the_packaged_network_gives_a_distance(channels):
    distance = lpips.load("efficientnet_lite0", size=32)
    x = jax.random.uniform(jax.random.key(0), (3, 8, 8, channels), minval=-1)
    near, far = x + 0.01, x[::-1]
    found, gradient = _value_and_gradient(distance, x, x.at[1].set(near[1]))
    # Rounding depends on the place in the batch, and equal images have two places.
    assert max(found[0], found[2]) < 1e-5 * found[1]
    assert jnp.isfinite(gradient).all()
    away, _ = _value_and_gradient(distance, x, far)
    assert away[0] > 5 * found[1]
    np.testing.assert_allclose(away[0], away[2], rtol=1e-4)


def test_flat_images_have_a_finite_gradient():
    distance = _original(0)
    black = jnp.full((1, 16, 16, 3), -1.0)
    _, gradient = _value_and_gradient(distance, black, -black)
    assert jnp.isfinite(gradient).all()


def test_images_are_enlarged_but_never_reduced():
    distance = _original(32)
    x = jnp.zeros((1, 48, 48, 3))
    assert distance._maps(distance.params, x)[0].shape[1] == 48
    assert distance._maps(distance.params, x[:, :16, :16])[0].shape[1] == 32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric_size": -1}, "metric_size=-1: use 0 or more"),
        ({"metric_dtype": "int8"}, "metric_dtype='int8': use float32 or bfloat16"),
        ({"metric_size": 0}, "images of 8x8 are too small for the network"),
    ],
)
def test_a_metric_on_too_small_images_raises(monkeypatch, settings, message):
    monkeypatch.setattr(lpips, "load", functools.partial(_loaded, lpips.load))
    config = config_lib.base()
    config.data.image_size, config.loss.metric = 8, "lpips"
    config.loss.update(settings)
    with pytest.raises(JcmError, match=message):
        distances.create(config)


def _loaded(load, name, *, size, dtype, folder):
    """Takes the place of `lpips.load`, with random weights."""
    if size < 0 or dtype != "float32":
        return load(name, size=size, dtype=dtype, folder=folder)
    return _original(size)


def test_weights_are_read_by_name(monkeypatch, tmp_path):
    made = torch_weights.random("lpips_squeeze", 31)
    heads = {
        f"lin{i}.model.1.weight": np.full((1, c, 1, 1), i, np.float32)
        for i, c in enumerate((64, 128, 256, 384, 384, 512, 512))
    }
    files = {"squeezenet1_1": made, "lpips_squeeze": heads}
    monkeypatch.setattr(weights, "read", lambda name, folder: files[name])
    distance = lpips.load("lpips_squeeze", size=32, folder=tmp_path)
    assert float(distance.params["head3"][0]) == 3
    x = jnp.zeros((1, 16, 16, 3))
    assert distance(distance.params, x, x)[0] == 0
    monkeypatch.undo()
    with pytest.raises(JcmError, match="squeezenet1_1-b8a52dc0.pth is missing"):
        lpips.load("lpips_squeeze", folder=tmp_path)


def test_pooling_by_tiles_equals_pooling_by_windows():
    x = jax.random.normal(jax.random.key(0), (2, 6, 9, 4))
    for size in (2, 3):  # 9 columns are not divisible by 2.
        window = (1, size, size, 1)
        expected = jax.lax.reduce_window(
            x, -jnp.inf, jax.lax.max, window, window, "VALID"
        )
        np.testing.assert_array_equal(layers.max_pool(x, size, size), expected)
    equal = jnp.ones((1, 4, 4, 1))
    slope = jax.grad(lambda x: jnp.sum(layers.max_pool(x, 2, 2)))(equal)
    np.testing.assert_array_equal(slope, 0.25)
    # On a TPU it is compiled in the other way, which treats equal maxima differently.
    traced = jax.jit(jax.grad(lambda x: jnp.sum(layers.max_pool(x, 2, 2)))).trace(equal)
    for platform, scatters in (("tpu", True), ("cuda", False), ("cpu", False)):
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("select_and_scatter" in program) == scatters
