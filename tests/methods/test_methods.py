"""Tests of the losses against closed forms and golden numbers."""

import dataclasses
import functools

import gaussian
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcm import config as config_lib
from jcm import methods
from jcm.diffusion import precond
from jcm.diffusion.denoiser import Denoiser
from jcm.methods import Batch, Frozen, distances
from jcm.methods.consistency import WEIGHTINGS, Consistency
from jcm.methods.edm import EDM
from jcm.runtime.errors import JcmError

_DISTANCES = {
    "l1": distances.l1,
    "l2": distances.l2,
    "linf": distances.linf,
    "huber": functools.partial(distances.pseudo_huber, c=0.03),
}


def _batch(x, keys=None):
    keys = jax.random.split(jax.random.key(0), len(x)) if keys is None else keys
    return Batch(jnp.asarray(x), labels=None, keys=keys, place=jnp.arange(len(x)))


# The closed forms have no parameters.
_FROZEN = Frozen(teachers={"diffusion": {}})


# --- golden numbers


def _loss_and_gradient(teacher, target, metric, solver, weighting):
    method = golden.consistency(
        teacher=Denoiser(golden.compiled(), precond.EDM()) if teacher else None,
        distance=distances.OfPixels(_DISTANCES[metric]),
        solver=solver,
        weighting=weighting,
    )

    def loss(params, frozen, batch, index, num_scales, noise, mask):
        frozen = frozen if target else frozen._replace(target=None)
        each = method.loss_at(params, frozen, batch, index, num_scales, noise)
        return jnp.sum(each * mask) / jnp.sum(mask)

    return jax.value_and_grad(loss)


_STORED_CASES = [
    "cd_heun_l1_N18",
    "cd_heun_l2_N18",
    "cd_heun_l2_N18_masked",
    "cd_heun_l2_N18_snr",
    "cd_heun_l2_N18_target",
    "cd_heun_l2_N18_truncated_snr",
    "cd_euler_l2_N18",
    "ct_euler_l1_N18",
    "ct_euler_l2_N18",
    "ct_euler_l2_N2_target",
]


@pytest.mark.parametrize("name", _STORED_CASES)
def test_consistency_loss_equals_the_original(name):
    case = golden.cases("B_losses.npz")[name]
    kind, solver, metric, _, *variant = name.split("_", 4)
    variant = variant[0] if variant else ""
    is_weighting = variant in ("snr", "truncated_snr")
    value, gradient = _loss_and_gradient(
        teacher=kind == "cd",
        target=kind == "ct" or variant == "target",
        metric=metric,
        solver=solver,
        weighting=variant if is_weighting else "uniform",
    )(
        golden.params("params"),
        Frozen(
            golden.params("target_params"), {"diffusion": golden.params("params_ema")}
        ),
        _batch(case["x"]),
        jnp.asarray(case["indices"]),
        jnp.int32(case["num_scales"]),
        jnp.asarray(case["z"]),
        jnp.asarray(case["mask"]),
    )
    np.testing.assert_allclose(value, case["loss"], rtol=1e-4)
    norm = golden.norm(gradient)
    np.testing.assert_allclose(norm, case["grad_norm"], rtol=1e-3)
    stored = {
        key.removeprefix("grad/"): value
        for key, value in case.items()
        if key.startswith("grad/")
    }
    if stored:
        for ours, theirs in zip(
            *map(jax.tree.leaves, (gradient, golden.from_original(stored))), strict=True
        ):
            tolerance = 1e-3 * np.abs(theirs).max() + 1e-6 * norm
            np.testing.assert_allclose(ours, theirs, atol=tolerance)


def test_denoising_loss_equals_the_original():
    case = golden.cases("B_other_losses.npz")["edm_dsm"]
    method = EDM(Denoiser(golden.compiled(), precond.EDM()))

    def loss(params):
        sigma, noise = jnp.asarray(case["t"]), jnp.asarray(case["z"])
        return jnp.mean(method.loss_at(params, _batch(case["x"]), sigma, noise))

    value, gradient = jax.value_and_grad(loss)(golden.params("params"))
    np.testing.assert_allclose(value, case["loss"], rtol=1e-4)
    np.testing.assert_allclose(golden.norm(gradient), case["grad_norm"], rtol=1e-3)


# --- closed forms


def _points(n=16):
    data = gaussian.Denoiser()
    x0 = data.mean + data.std * jax.random.normal(jax.random.key(1), (n, 4, 4, 1))
    noise = jax.random.normal(jax.random.key(2), x0.shape)
    return x0, noise


@pytest.mark.parametrize("solver", ["heun", "euler"])
@pytest.mark.parametrize("distance", _DISTANCES)
def test_exact_function_has_no_loss_where_trajectories_are_straight(solver, distance):
    """If all data is one point, every solver is exact, and so is f."""
    x0, noise = _points()
    x0 = jnp.full_like(x0, 0.3)
    method = golden.consistency(
        denoiser=gaussian.ConsistencyFunction(std=0.0),
        teacher=gaussian.Denoiser(std=0.0),
        distance=distances.OfPixels(_DISTANCES[distance]),
        solver=solver,
    )
    index = jnp.arange(16)
    loss = method.loss_at({}, _FROZEN, _batch(x0), index, 18, noise)
    np.testing.assert_allclose(loss, 0, atol=2e-6)


@pytest.mark.parametrize(("solver", "order"), [("heun", 3), ("euler", 2)])
def test_the_loss_of_the_exact_function_is_the_error_of_the_solver(solver, order):
    """The root of the l2 loss is the error of one step of the solver."""
    x0, noise = _points()
    method = golden.consistency(
        denoiser=gaussian.ConsistencyFunction(),
        teacher=gaussian.Denoiser(),
        solver=solver,
    )
    errors = []
    for num_scales in (41, 81):
        # In both grids, this is the same noise level of about 1.9.
        index = jnp.full(16, (num_scales - 1) // 2)
        loss = method.loss_at({}, _FROZEN, _batch(x0), index, num_scales, noise)
        errors.append(float(jnp.sqrt(jnp.mean(loss))))
    measured = np.log2(errors[0] / errors[1])
    assert abs(measured - order) < 0.3
    assert errors[1] < 2e-3


def test_weightings_by_hand():
    t = jnp.array([0.5, 2.0])
    expected = {
        "uniform": [1, 1],
        "snr": [4, 0.25],
        "snrp1": [5, 1.25],
        "truncated_snr": [4, 1],
    }
    assert set(expected) == set(WEIGHTINGS)
    for name, values in expected.items():
        np.testing.assert_allclose(WEIGHTINGS[name](t), values, rtol=1e-6)


@pytest.mark.parametrize("stop", [True, False])
def test_the_target_has_no_gradient_by_default(stop):
    """For f = a x, half of the gradient remains if the target is constant."""

    @dataclasses.dataclass(frozen=True)
    class Line(gaussian.ConsistencyFunction):
        def __call__(self, params, x, sigma, labels=None, dropout_keys=None):
            return params["a"] * x

    x0, noise = _points()
    method = golden.consistency(denoiser=Line(), teacher=None, stop_gradient=stop)
    index = jnp.full(16, 3)

    def loss(a, target):
        frozen = Frozen(None if target is None else {"a": target})
        each = method.loss_at({"a": a}, frozen, _batch(x0), index, 18, noise)
        return jnp.mean(each)

    gradient = jax.grad(loss)(1.0, None)
    alone = jax.grad(loss)(1.0, 1.0)  # The target has its own parameters.
    whole = jax.grad(lambda a: loss(a, a))(1.0)
    np.testing.assert_allclose(gradient, alone if stop else whole, rtol=1e-5)
    if not stop:
        assert abs(whole - alone) > 0.1 * abs(alone)


def test_a_wrong_function_has_a_larger_loss():
    x0, noise = _points()
    method = golden.consistency(
        denoiser=gaussian.ConsistencyFunction(mean=0.0), teacher=gaussian.Denoiser()
    )
    right = dataclasses.replace(method, denoiser=gaussian.ConsistencyFunction())
    arguments = {}, _FROZEN, _batch(x0), jnp.full(16, 8), 18, noise
    wrong_loss, right_loss = (
        float(jnp.mean(m.loss_at(*arguments))) for m in (method, right)
    )
    assert wrong_loss > 10 * right_loss


def test_the_denoising_loss_has_its_minimum_at_the_closed_form():
    x0, _ = _points(512)
    batch = _batch(x0)
    losses = {
        mean: float(
            jnp.mean(
                EDM(gaussian.Denoiser(mean=mean))
                .loss({}, None, Frozen(), batch, jnp.int32(0))
                .each
            )
        )
        for mean in (0.0, 0.3, 0.6)
    }
    assert losses[0.3] < losses[0.0]
    assert losses[0.3] < losses[0.6]
    # The best D leaves a variance of (s sigma)^2 / (s^2 + sigma^2). With this weight,
    # the loss of a pixel is then 1 / sigma_data^2 at every noise level.
    np.testing.assert_allclose(losses[0.3], 16, rtol=0.1)


def test_training_uses_one_noise_for_both_points():
    x0, noise = _points()
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Recorder(gaussian.ConsistencyFunction):
        def __call__(self, params, x, sigma, labels=None, dropout_keys=None):
            seen.append((x, sigma, dropout_keys))
            return super().__call__(params, x, sigma)

    method = golden.consistency(denoiser=Recorder(), teacher=None)
    method.loss_at({}, _FROZEN, _batch(x0), jnp.arange(16), 18, noise)
    (x, t, dropout), (x_next, t_next, dropout_next) = seen
    for point, level in ((x, t), (x_next, t_next)):
        recovered = (point - x0) / level[:, None, None, None]
        # In float32, little of x0 is left near 80, and little of the noise near 0.002.
        tolerance = 1e-4 + 1e-6 / float(level.min())
        np.testing.assert_allclose(recovered, noise, atol=tolerance)
    np.testing.assert_array_equal(
        jax.random.key_data(dropout), jax.random.key_data(dropout_next)
    )


def test_indices_cover_the_grid_and_examples_differ():
    counts = np.zeros(18, int)

    @dataclasses.dataclass(frozen=True)
    class Spy(Consistency):
        def loss_at(self, params, frozen, batch, index, num_scales, noise):
            counts[:] += np.bincount(np.asarray(index), minlength=18)
            assert np.unique(np.asarray(noise)[:, 0, 0, 0]).size > 0.99 * len(index)
            return jnp.zeros(len(index))

    spy = Spy(**vars(golden.consistency(teacher=None)))
    x0 = jnp.zeros((2000, 2, 2, 1))
    spy.loss({}, None, _FROZEN, _batch(x0), jnp.int32(0))
    assert counts[17] == 0  # The last point has no next one.
    np.testing.assert_allclose(counts[:17], 2000 / 17, rtol=0.35)


# --- distances


def test_distances_by_hand():
    a = jnp.array([[[[3.0], [0.0]]], [[[0.0], [0.0]]]])
    b = jnp.zeros_like(a)
    np.testing.assert_allclose(distances.l1(a, b), [1.5, 0])
    np.testing.assert_allclose(distances.l2(a, b), [4.5, 0])
    np.testing.assert_allclose(distances.linf(a, b), [3, 0])
    # It depends on the norm of the whole image, which is 3.
    np.testing.assert_allclose(
        distances.pseudo_huber(a, b, c=4.0), [1.0, 0.0], rtol=1e-6
    )


def test_pseudo_huber_is_smooth_at_zero():
    zero = jnp.zeros((1, 2, 2, 1))
    gradient = jax.grad(lambda x: distances.pseudo_huber(x, zero, c=0.03).sum())(zero)
    np.testing.assert_array_equal(gradient, 0)
    tiny = distances.pseudo_huber(zero + 1e-6, zero, c=0.03)
    np.testing.assert_allclose(tiny, 4e-12 / 0.06, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "c", "message"),
    [
        ("lpips", 0.03, "vgg16-397923af.pth is missing: download https"),
        ("cosine", 0.03, "unknown"),
        ("pseudo_huber", 0.0, "must be above 0"),
    ],
)
def test_an_impossible_distance_raises(name, c, message, tmp_path):
    config = config_lib.base()
    with config.unlocked():
        config.loss.metric, config.loss.huber_c = name, c
        config.weights = str(tmp_path)
    with pytest.raises(JcmError, match=message):
        distances.create(config)


@pytest.mark.parametrize(
    "changes", [{"weighting": "sn"}, {"solver": "rk4"}], ids=lambda c: next(iter(c))
)
def test_unknown_settings_raise(changes):
    with pytest.raises(JcmError, match="unknown"):
        golden.consistency(**changes)


def test_distillation_without_its_teacher_is_not_training():
    network = golden.network()
    config = config_lib.load("configs/digits_cd.py:smoke")
    with pytest.raises(KeyError, match="diffusion"):
        methods.create(config, network, {})


def test_the_levels_of_a_model_are_those_at_the_end_of_its_training():
    for name, levels in (("cifar10_cd", 18), ("cifar10_ct", 151), ("digits_ct", 41)):
        config = config_lib.load(f"configs/{name}.py")
        f = methods.denoiser(config, golden.network())
        assert f.precond.levels == levels
        scales = methods.consistency._scales(config)
        assert int(scales(jnp.int32(config.train.num_steps))[0]) == levels
