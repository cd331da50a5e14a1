"""Tests of optimisers, learning rates and averages, against closed forms and others."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jcm import config as config_lib
from jcm.runtime.errors import JcmError
from jcm.training import averages, optim


def _settings(name="radam", **changes):
    """Returns `config.optim` with some fields changed."""
    config = config_lib.base().optim
    config.update({"name": name} | changes)
    return config


def _rates(steps, num_steps=100, **changes):
    """Returns the learning rates of some steps, for batches of 4 images."""
    rate = jax.jit(optim.learning_rate(_settings(**changes), 4, num_steps))
    return [float(rate(step)) for step in steps]


def test_warm_up_is_linear_in_images():
    ten_steps = {"learning_rate": 1.0, "warmup_kimg": 0.04}
    expected = [*np.arange(10) / 10, 1, 1]
    np.testing.assert_allclose(_rates(range(12), **ten_steps), expected, rtol=1e-6)
    assert _rates([0, 7, 10_000]) == [np.float32(4e-4)] * 3


def test_linear_falls_to_zero_at_the_end():
    """As in CMT: 2e-4 (1 - images / total), from the first step on."""
    found = _rates([0, 1, 50, 99, 100], learning_rate=2e-4, schedule="linear")
    expected = 2e-4 * np.array([1, 0.99, 0.5, 0.01, 0])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-12)


def test_inverse_sqrt_is_that_of_the_original():
    """ECT on ImageNet-64: the reference rate lasts for 2000 batches of 128."""
    stored = golden.arrays("H_schedules.npz")
    settings = _settings(learning_rate=1e-3, schedule="inverse_sqrt", decay_kimg=256.0)
    rate = optim.learning_rate(settings, 128, 100)
    for images, theirs in zip(stored["images"], stored["lr"], strict=True):
        assert images % 128 == 0
        assert float(rate(jnp.int32(images // 128))) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cosine"}, "schedule='cosine' is unknown: use one of constant"),
        ({"schedule": "inverse_sqrt"}, "needs config.optim.decay_kimg: set it to the"),
    ],
)
def test_impossible_schedules_raise(changes, message):
    with pytest.raises(JcmError, match=message):
        _rates([0], **changes)


def test_the_rate_outside_of_the_chain_gives_the_same_bits_as_inside():
    """Against optax's own chain, with a warm-up, over steps of random gradients."""
    settings = _settings(learning_rate=3e-4, warmup_kimg=0.02, grad_clip=1.0)
    rate, ours = optim.learning_rate(settings, 4, 100), optim.create(settings)
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_radam(b1=settings.b1, b2=settings.b2, eps=settings.eps),
        optax.scale_by_schedule(
            lambda k: -settings.learning_rate * jnp.minimum(k / 5, 1)
        ),
    )
    a = b = {"w": jnp.ones(50)}
    state_a, state_b = ours.init(a), theirs.init(b)
    for step in range(12):
        gradient = {"w": jax.random.normal(jax.random.key(step), (50,))}
        direction, state_a = ours.update(gradient, state_a, a)
        a = {"w": a["w"] + -rate(jnp.int32(step)) * direction["w"]}
        updates, state_b = theirs.update(gradient, state_b, b)
        b = optax.apply_updates(b, updates)
        np.testing.assert_array_equal(a["w"], b["w"])


def test_long_gradients_are_clipped():
    gradient = {"w": jnp.array([30.0, 40.0])}
    clipped, whole = (
        optim.create(_settings("adam", grad_clip=clip)) for clip in (1.0, 0.0)
    )
    moments = [
        optimizer.update(gradient, optimizer.init(gradient), gradient)[1][1].mu["w"]
        for optimizer in (clipped, whole)
    ]
    np.testing.assert_allclose(moments[0], 0.1 * np.array([0.6, 0.8]), rtol=1e-5)
    np.testing.assert_allclose(moments[1], 0.1 * np.array([30, 40]), rtol=1e-5)


_THEIRS = {
    "radam_ect": ("radam", 1e-4, 0.999),
    "radam_scm": ("radam", 1e-4, 0.99),
    "adam_meanflow": ("adam", 6e-4, 0.999),
}


@pytest.mark.parametrize("name", _THEIRS)
def test_optimisers_equal_those_of_torch(name):
    """With gradients of which some are not finite, which become 0 and 1e5."""
    stored = golden.arrays("H_optimisers.npz")
    kind, rate, b2 = _THEIRS[name]
    optimizer = optim.create(_settings(kind, b2=b2))
    theta = jnp.asarray(stored["theta0"])
    state = optimizer.init(theta)
    for gradient, theirs in zip(stored["gradients"], stored[name], strict=True):
        finite = jnp.nan_to_num(gradient, nan=0.0, posinf=1e5, neginf=-1e5)
        direction, state = optimizer.update(finite, state, theta)
        theta = theta - rate * direction
        np.testing.assert_allclose(theta, theirs, atol=2e-6)


# --- averages


def _averaged(spec, thetas, batch_size):
    """Returns the average after each step, which begins as the first parameters."""
    form = averages.parse(spec)

    def update(average, numbered):
        step, theta = numbered
        average = form.update(average, {"w": theta}, step, batch_size)
        return average, average["w"]

    steps = jnp.arange(1, len(thetas))
    return np.asarray(jax.lax.scan(update, {"w": thetas[0]}, (steps, thetas[1:]))[1])


def test_averages_equal_those_of_edm2():
    stored = golden.arrays("H_averages.npz")
    thetas = jnp.asarray(stored["theta"])
    kept = stored["steps"] - 1
    for column, width in enumerate(("0.05", "0.1")):
        found = _averaged(f"power:{width}", thetas, 128)
        np.testing.assert_allclose(found[kept], stored["power"][:, column], atol=2e-5)
    found = _averaged("halflife:0.05/0.05", thetas, 128)
    np.testing.assert_allclose(found[kept], stored["halflife"], atol=2e-5)


def test_exponents_of_power_functions():
    """Karras et al. 2024, Algorithm 2, as their code computes them."""
    for width, exponent in (
        (0.05, 16.97220),
        (0.075, 10.28912),
        (0.1, 6.937204),
        (0.15, 3.557869),
        (0.2, 1.826214),
    ):
        assert averages.gamma(width) == pytest.approx(exponent, rel=1e-6)


def test_the_first_power_update_copies_and_late_ones_keep_their_weight():
    """In float32, 1 - 1/k itself would be wrong by 3 % after a million steps."""
    form, new = averages.parse("power:0.05"), {"w": jnp.full(3, 0.1)}
    first = form.update({"w": jnp.full(3, 7e7)}, new, jnp.int32(1), 4)
    np.testing.assert_array_equal(first["w"], new["w"])
    zeros, ones = {"w": jnp.zeros(3)}, {"w": jnp.ones(3)}
    late = form.update(zeros, ones, jnp.int32(1_000_000), 4)
    exact = -np.expm1((form.gamma + 1) * np.log1p(-1e-6))
    np.testing.assert_allclose(late["w"], exact, rtol=1e-5)


def test_a_half_life_without_a_ramp_is_a_constant_rate_to_the_bit():
    old = {"w": jax.random.normal(jax.random.key(0), (100,))}
    new = {"w": jax.random.normal(jax.random.key(1), (100,))}
    expected = averages.ema(old, new, 0.5 ** (512 / 500_000))
    found = averages.parse("halflife:0.5").update(old, new, jnp.int32(7), 512)
    np.testing.assert_array_equal(found["w"], expected["w"])
    rate = averages.parse("0.9999").update(old, new, jnp.int32(7), 512)
    np.testing.assert_array_equal(rate["w"], averages.ema(old, new, 0.9999)["w"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("linear:3", "'linear:3' is unknown: use a rate such as 0.9999"),
        ("halflife", "'halflife' is unknown"),
        ("halflife:-1", "out of bounds"),
        ("halflife:0.5/nan", "out of bounds"),
        ("1.5", "out of bounds: a rate must be in"),
        ("nan", "out of bounds"),
        ("power:0.5", "width 0.5 of a power function must be above 0 and at most 0.28"),
        ("power:", "'power:' is unknown"),
    ],
)
def test_impossible_averages_raise(spec, message):
    with pytest.raises(JcmError, match=f"config.train.averages: .*{message}"):
        averages.parse(spec)
