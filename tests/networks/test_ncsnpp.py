"""Tests of NCSN++ against golden numbers, and of its options."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcm import config as config_lib
from jcm import networks
from jcm.diffusion import precond
from jcm.networks import Conditions
from jcm.runtime.errors import JcmError


@pytest.fixture(scope="module")
def forward():
    return golden.arrays("A_cfg1_forward.npz")


def test_raw_output_equals_the_original(forward):
    params = golden.params("params_ema")
    raw = golden.raw(golden.compiled(), params)(forward["net_x"], forward["net_cond"])
    assert golden.relative(raw, forward["raw"]) < 1e-4
    assert golden.relative(raw, forward["raw_f64"]) < 1e-4


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(precond.EDM(), "denoiser"), (precond.Consistency(), "distiller")],
)
def test_preconditioned_output_equals_the_original(forward, kind, expected):
    network = golden.raw(golden.compiled(), golden.params("params_ema"))
    ours = kind(network, forward["x"], forward["t"])
    for sample in range(len(ours)):  # Each noise level has its own scale.
        assert golden.relative(ours[sample], forward[expected][sample]) < 1e-4


def test_the_published_network_has_its_number_of_parameters():
    changes = {"nf": 128, "ch_mult": (2, 2, 2), "num_res_blocks": 4}
    network = networks.create(
        golden.CONFIG | changes | {"attn_resolutions": (16,)},
        image_size=32,
        image_channels=3,
        num_classes=0,
    )
    assert networks.count(network.shapes) == 56_395_651


def test_recomputation_changes_no_gradient(forward):
    params = golden.params("params_ema")

    def gradient(**changes):
        network = golden.network(**changes)

        def loss(params):
            raw = golden.raw(network, params)
            return jnp.sum(raw(forward["net_x"], forward["net_cond"]) ** 2)

        assert ("remat" in str(jax.make_jaxpr(loss)(params))) == bool(changes)
        return jax.jit(jax.grad(loss))(params)

    plain, recomputed = gradient(), gradient(remat=(16, 8))
    norm = max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain))
    for a, b in zip(*map(jax.tree.leaves, (plain, recomputed)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * norm)


def test_bfloat16_is_close_and_returns_float32(forward):
    params = golden.params("params_ema")
    network = golden.compiled(dtype="bfloat16")
    raw = golden.raw(network, params)(forward["net_x"], forward["net_cond"])
    assert raw.dtype == jnp.float32
    error = golden.relative(raw, forward["raw"])
    # With a time embedding in bfloat16, the error would be 0.09.
    assert 1e-4 < error < 0.04


def test_dropout_depends_on_the_image_and_not_on_the_batch(forward):
    params = golden.params("params_ema")
    network = golden.compiled(dropout=0.5)
    x, c_noise = jnp.asarray(forward["net_x"]), jnp.asarray(forward["net_cond"])
    keys = jax.random.split(jax.random.key(0), len(x))
    given = Conditions(c_noise)
    whole = network(params, x, given, keys)
    turned = network(params, x[::-1], Conditions(c_noise[::-1]), keys[::-1])
    np.testing.assert_allclose(whole, turned[::-1], rtol=1e-4, atol=1e-4)
    other = network(params, x, given, keys[::-1])
    assert golden.relative(other, whole) > 0.01
    without = network(params, x, given)
    assert golden.relative(without, forward["raw"]) < 1e-4


def test_labels_matter_if_and_only_if_there_are_classes():
    network = networks.create(
        golden.CONFIG, image_size=16, image_channels=3, num_classes=10
    )
    # New blocks almost ignore the embedding, so the parameters are shifted.
    params = jax.tree.map(lambda p: p + 0.1, network.init(jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    run = functools.partial(jax.jit(network), params, x)
    a, b = (run(Conditions(jnp.zeros(2), jnp.array(y))) for y in ([3, 3], [3, 4]))
    np.testing.assert_array_equal(a[0], b[0])
    assert golden.relative(a[1], b[1]) > 0.1
    unconditional = golden.network()
    for wrong, weights, labels, message in (
        (network, params, None, "the network has 10 classes: pass labels"),
        (
            *(unconditional, golden.params("params_ema"), jnp.array([3, 3])),
            "the network has no classes: pass labels=None",
        ),
    ):
        with pytest.raises(JcmError, match=message):
            jax.eval_shape(wrong, weights, x, Conditions(jnp.zeros(2), labels))


_MORE = {"times": 2, "augment_dim": 9, "guidance": True}


@pytest.mark.parametrize("name", ["ncsnpp", "adm"])
def test_each_further_condition_changes_the_output(name):
    """A second time, an augmentation and a guidance, of which 0 and 1 are neutral."""
    config = config_lib.load("configs/cifar10_ct.py:smoke").model.to_dict() | _MORE
    del config["class_conditional"]
    network = networks.create(
        config | {"name": name}, image_size=8, image_channels=1, num_classes=0
    )
    keys = iter(jax.random.split(jax.random.key(0), 1000))
    params = jax.tree.map(
        lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape),
        network.init(jax.random.key(1)),
    )
    x = jax.random.normal(jax.random.key(2), (3, 8, 8, 1))
    run = functools.partial(jax.jit(network), params, x)
    times = jnp.array([[0.3, 0.1], [0.3, 0.1], [0.3, 0.1]])
    plain = run(Conditions(times))
    neutral = Conditions(times, augment=jnp.zeros((3, 9)), guidance=jnp.ones(3))
    np.testing.assert_allclose(run(neutral), plain, atol=1e-5)
    changed = (
        Conditions(times.at[1, 0].set(0.9)),
        Conditions(times.at[1, 1].set(0.9)),
        Conditions(times, augment=jnp.zeros((3, 9)).at[1, 4].set(1.0)),
        Conditions(times, guidance=jnp.ones(3).at[1].set(4.0)),
    )
    for given in changed:
        found = run(given)
        np.testing.assert_allclose(found[::2], plain[::2], atol=1e-5)
        assert golden.relative(found[1], plain[1]) > 1e-3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Conditions(jnp.zeros((2, 2))), "takes 1 time inputs, and not 2: set"),
        (
            Conditions(jnp.zeros(2), augment=jnp.zeros((2, 6))),
            "6 augmentation numbers for a network that takes 0",
        ),
        (Conditions(jnp.zeros(2), guidance=jnp.ones(2)), "takes no guidance"),
    ],
)
def test_a_condition_that_the_network_does_not_take_raises(given, message):
    x = jnp.zeros((2, 16, 16, 3))
    with pytest.raises(JcmError, match=message):
        jax.eval_shape(golden.network(), golden.params("params_ema"), x, given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ch_mult": (1, 2, 2, 2, 2, 2)}, "image_size=16 is not divisible by 32"),
        ({"attn_resolutions": (5,)}, "attn_resolutions=.* names an image size that"),
        ({"nf": 6}, "nf=6"),
        ({"name": "unknown"}, "config.model.name"),
        ({"dtype": "float8"}, "dtype"),
    ],
)
def test_impossible_sizes_raise(changes, message):
    with pytest.raises(JcmError, match=message):
        networks.create(
            golden.CONFIG | changes, image_size=16, image_channels=3, num_classes=0
        )
