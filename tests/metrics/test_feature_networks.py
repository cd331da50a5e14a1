"""Tests of the published networks against PyTorch on the same weights and images."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
import torch_weights
from PIL import Image

from jcm.data import images as images_lib
from jcm.metrics import networks, weights
from jcm.metrics.networks import dinov2, efficientnet, inception, layers
from jcm.runtime.errors import JcmError


@pytest.fixture(scope="module")
def lite0():
    network = networks.load("efficientnet_lite0")
    return lambda x: jax.jit(network.apply)(network.params, x)


def test_inception_equals_pytorch_fid():
    params = inception.params(torch_weights.random("inception", 11))
    x = np.random.RandomState(12).uniform(-1, 1, (2, 299, 299, 3)).astype("f4")
    ours = jax.jit(inception.features)(params, x)
    theirs = torch_weights.theirs("inception")
    sizes = {"pool": 2048, "spatial": 2023, "logits": 1008}
    for name, size in sizes.items():
        assert ours[name].shape == (2, size)
        assert golden.relative(ours[name], theirs[name]) < 1e-5
    assert set(ours) == set(theirs)


@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [(3, 2, "VALID"), (3, 1, "SAME"), (3, 2, [(0, 0), (0, 1), (0, 1), (0, 0)])],
)
def test_pooling_equals_that_of_jax(size, stride, padding):
    x = jax.random.normal(jax.random.key(0), (2, 9, 12, 3))
    window, step = (1, size, size, 1), (1, stride, stride, 1)
    most = jax.lax.reduce_window(x, -np.inf, jax.lax.max, window, step, padding)
    np.testing.assert_array_equal(layers.max_pool(x, size, stride, padding), most)
    add = functools.partial(
        jax.lax.reduce_window,
        init_value=0.0,
        computation=jax.lax.add,
        window_dimensions=(1, 3, 3, 1),
        window_strides=(1, 1, 1, 1),
        padding="SAME",
    )
    mean = add(x) / add(jnp.ones_like(x))
    np.testing.assert_allclose(layers.mean_pool_3x3(x), mean, atol=1e-6)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (1, 1), (1, 2)])
def test_convolutions_without_padding_equal_those_of_jax(size, stride):
    keys = jax.random.split(jax.random.key(1))
    x = jax.random.normal(keys[0], (2, 9, 12, 3))
    kernel = jax.random.normal(keys[1], (size, size, 3, 5))
    params = {"a.kernel": kernel, "a.bias": jnp.zeros(5)}
    numbers = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(
        *(x, kernel, (stride, stride), "VALID"), dimension_numbers=numbers
    )
    found = layers.conv(params, "a", x, stride=stride, padding="VALID")
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("size", [32, 400])
def test_inception_resizes_as_tensorflow_1(size):
    x = np.random.RandomState(13).uniform(0, 255, (1, size, size, 3)).astype("f4")
    ours = inception.resize(jnp.asarray(x))
    assert ours.shape == (1, 299, 299, 3)
    theirs = torch_weights.theirs("resize")[str(size)]
    assert golden.relative(ours[:, ::23, ::19], theirs) < 1e-6


def test_inception_takes_pixels_and_repeats_grey():
    params = inception.params(torch_weights.random("inception", 11))
    pixels = np.random.RandomState(1).randint(0, 256, (2, 20, 20, 1))
    grey = images_lib.to_float(pixels.astype(np.uint8))
    ours = jax.jit(inception.apply)(params, jnp.asarray(grey))
    given = (inception.resize(jnp.tile(pixels, 3).astype("f4")) - 128) / 128
    by_hand = jax.jit(inception.features)(params, given)
    assert golden.relative(ours["pool"], by_hand["pool"]) < 1e-5


def test_dinov2_equals_the_code_of_its_authors():
    params = dinov2.params(torch_weights.random("dinov2", 21))
    x = np.random.RandomState(22).uniform(-1, 1, (2, 224, 224, 3)).astype("f4")
    ours, theirs = jax.jit(dinov2.features)(params, x), torch_weights.theirs("dinov2")
    assert ours.shape == (2, 1024)
    assert golden.relative(ours, theirs["cls"]) < 1e-5


@pytest.mark.parametrize("size", [32, 300])
def test_dinov2_resizes_as_pytorch_with_smoothing(size):
    x = np.random.RandomState(23).uniform(-1, 1, (1, size, size, 3)).astype("f4")
    ours = dinov2.prepare(jnp.asarray(x))
    theirs = torch_weights.theirs("dinov2")[f"resized{size}"]
    assert golden.relative(ours[:, ::23, ::19], theirs) < 1e-5


def test_efficientnet_equals_pytorch(lite0):
    theirs = torch_weights.theirs("efficientnet_lite0")
    x = np.random.RandomState(0).uniform(-1, 1, (2, 224, 224, 3)).astype("f4")
    ours = lite0(x)
    assert {name: value.shape[1] for name, value in ours.items()} == {
        "stage": 320,
        "pool": 1280,
        "logits": 1000,
    }
    for name in ("logits", "pool"):
        assert golden.relative(ours[name], theirs[name]) < 1e-4


@pytest.mark.parametrize(
    ("name", "classes"),
    # Tabby, tiger cat, Egyptian cat, lynx; espresso; space shuttle, missile.
    [("chelsea", (281, 282, 285)), ("coffee", (967,)), ("rocket", (657, 744, 812))],
)
def test_efficientnet_knows_photographs(lite0, name, classes):
    photograph = Image.fromarray(getattr(skimage.data, name)())
    side = min(photograph.size)
    left, top = ((length - side) // 2 for length in photograph.size)
    square = photograph.crop((left, top, left + side, top + side)).resize((224, 224))
    logits = lite0(images_lib.to_float(np.asarray(square))[None])["logits"]
    assert int(logits.argmax()) in classes


def test_efficientnet_has_seven_stages():
    network = networks.load("efficientnet_lite0")
    x = jnp.zeros((1, 64, 64, 1))
    maps = jax.eval_shape(efficientnet.stages, network.params, x)
    widths = (16, 24, 40, 80, 112, 192, 320)
    sizes = (32, 16, 8, 4, 4, 2, 2)
    assert [x.shape for x in maps] == [
        (1, n, n, c) for n, c in zip(sizes, widths, strict=True)
    ]


def test_weights_of_another_network_raise(monkeypatch):
    monkeypatch.setattr(weights, "read", lambda *_: torch_weights.random("dinov2", 21))
    for name in ("inception", "efficientnet_lite0"):
        with pytest.raises(JcmError, match="use the file of the right network"):
            networks.load(name, "/nowhere")


def test_images_of_two_channels_raise(lite0):
    with pytest.raises(JcmError, match="images have 2 channels: use 1 or 3"):
        lite0(jnp.zeros((1, 8, 8, 2)))


# --- files of weights


def test_a_file_of_weights_is_checked_and_a_missing_one_named(tmp_path):
    target = tmp_path / "vgg16-397923af.pth"
    with pytest.raises(JcmError, match=f"{target} is missing: download https://"):
        weights.path("vgg16", tmp_path)
    target.write_bytes(b"half a fi")
    with pytest.raises(JcmError, match=f"{target} is there, but with sha256 "):
        weights.path("vgg16", tmp_path)


def test_a_file_is_downloaded_into_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JCM_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "source.pth"
    source.write_bytes(weights.path("efficientnet_lite0").read_bytes())
    file = weights.File("net-57934424.pth", source.as_uri(), "sha256:57934424")
    monkeypatch.setitem(weights.FILES, "net", file)
    found = weights.path("net")
    assert found == tmp_path / "cache" / "weights" / "net-57934424.pth"
    source.unlink()
    assert len(weights.read("net")) == 296
    found.write_bytes(found.read_bytes()[:-1])
    with pytest.raises(JcmError, match="there, but with sha256"):
        weights.read("net")
