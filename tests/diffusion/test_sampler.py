"""Tests of the samplers against closed forms and golden numbers; invariances."""

import functools
import itertools

import gaussian
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcm.diffusion import ode, precond
from jcm.diffusion import sampler as sampler_lib
from jcm.diffusion.denoiser import Denoiser
from jcm.diffusion.sampler import Sampler
from jcm.diffusion.schedule import Sampling, Schedule, ode_schedule
from jcm.diffusion.schedules import KarrasGrid
from jcm.runtime import sharding
from jcm.runtime.errors import JcmError

_GRID = KarrasGrid().sigmas(18)


def _step(kind, solver):
    """Returns the function of one step with the small network."""
    network = golden.raw(golden.compiled(), golden.params("params_ema"))
    return functools.partial(kind.step, network, solver=solver)


# --- the original's numbers


def test_one_step_equals_the_original():
    case = golden.cases("D_samplers_editing.npz")["onestep"]
    denoiser = Denoiser(golden.compiled(), precond.Consistency())
    ours = denoiser(golden.params("params_ema"), case["x_T"], jnp.full(4, 80.0))
    assert golden.relative(ours, case["sample"]) < 1e-4


def test_multistep_equals_the_original():
    case = golden.cases("D_samplers_editing.npz")["multistep_2"]
    step, x = _step(precond.Consistency(), "consistency"), case["x_T"]
    sigmas = [_GRID[i] for i in case["ts"]]
    for i, noise in enumerate(case["noise"]):
        levels = jnp.float32(sigmas[i]), jnp.float32(sigmas[i + 1])
        x, _ = step(x, *levels, noise)
    assert golden.relative(x, case["sample"]) < 1e-4


@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_ode_sampler_equals_the_original(solver):
    case = golden.cases("D_samplers_editing.npz")[f"{solver}_denoise1"]
    x = case["x_T"]
    sigmas = ode_schedule(KarrasGrid(), 18, solver).sigmas
    np.testing.assert_allclose(sigmas, case["timesteps"], rtol=1e-4)
    for sigma, sigma_next in itertools.pairwise(sigmas):
        step = _step(precond.EDM(), "euler" if sigma_next == 0 else solver)
        levels = jnp.float32(sigma), jnp.float32(sigma_next)
        x, _ = step(x, *levels, jnp.zeros_like(x))
    assert golden.relative(x, case["sample"]) < 1e-4


# --- closed forms


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_solver_converges_at_its_order(solver, order):
    data = gaussian.Denoiser()
    x = 80 * jax.random.normal(jax.random.key(0), (8, 4, 4, 1))
    exact = gaussian.trajectory(data, x, 80.0, 0.002)
    with jax.enable_x64(True):
        errors = []
        for steps in (64, 128):
            sigmas = KarrasGrid().sigmas(steps + 1)
            y = jnp.asarray(np.asarray(x), jnp.float64)
            for a, b in itertools.pairwise(sigmas):
                levels = jnp.full(8, a, jnp.float64), jnp.full(8, b, jnp.float64)
                y = ode.step(functools.partial(data, {}), y, *levels, solver=solver)
            errors.append(float(np.abs(np.asarray(y) - np.asarray(exact)).max()))
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.25, errors


@pytest.mark.parametrize("sigmas", [(80.0,), (80.0, 0.8), (80.0, 3.0, 0.2)])
def test_exact_consistency_function_gives_the_data_in_any_number_of_steps(sigmas):
    made = Sampler(gaussian.ConsistencyFunction(std=0.1), batch_size=64)(
        {}, jax.random.key(0), range(64), Schedule(sigmas)
    )
    np.testing.assert_allclose(made.mean(), 0.3, atol=0.01)
    np.testing.assert_allclose(made.std(), 0.1, rtol=0.03)


def test_ode_sampler_gives_the_data():
    schedule = ode_schedule(KarrasGrid(), 40, "heun")
    made = Sampler(gaussian.Denoiser(std=0.1), batch_size=64)(
        {}, jax.random.key(0), range(64), schedule
    )
    np.testing.assert_allclose(made.mean(), 0.3, atol=0.01)
    np.testing.assert_allclose(made.std(), 0.1, rtol=0.05)


# --- invariances


@pytest.fixture(scope="module")
def denoiser():
    return Denoiser(golden.network(), precond.Consistency())


@pytest.fixture(scope="module")
def reference(denoiser):
    """Ten images, made in a batch of sixteen on eight devices with pmap."""
    sampler = Sampler(denoiser, batch_size=16)
    return sampler(_params(), jax.random.key(3), range(10), Schedule((80.0, 0.5)))


def _params():
    return golden.params("params_ema")


def test_images_do_not_depend_on_the_batch(denoiser, reference):
    sampler = Sampler(denoiser, batch_size=8)
    key, schedule = jax.random.key(3), Schedule((80.0, 0.5))
    made = sampler(_params(), key, range(10), schedule)
    np.testing.assert_allclose(made, reference, atol=2e-5)
    some = sampler(_params(), key, [7, 2], schedule)
    np.testing.assert_allclose(some, reference[[7, 2]], atol=2e-5)
    assert np.abs(reference[2] - reference[7]).max() > 0.1


def test_pmap_equals_jit_with_sharded_parameters(denoiser, reference):
    mesh = sharding.make_mesh(fsdp=4)
    params = jax.device_put(
        _params(), sharding.shard_tree(mesh, _params(), sharding.Rules(0))
    )
    assert not jax.tree.leaves(params)[-1].sharding.is_fully_replicated
    sampler = Sampler(denoiser, batch_size=16, sharding=sharding.batch(mesh))
    made = sampler(params, jax.random.key(3), range(10), Schedule((80.0, 0.5)))
    np.testing.assert_allclose(made, reference, atol=2e-5)


def test_images_do_not_depend_on_the_number_of_devices(denoiser, reference):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    sampler = Sampler(denoiser, batch_size=10, sharding=sharding.batch(mesh))
    made = sampler(_params(), jax.random.key(3), range(10), Schedule((80.0, 0.5)))
    np.testing.assert_allclose(made, reference, atol=2e-5)


def test_another_key_gives_other_images(denoiser, reference):
    sampler = Sampler(denoiser, batch_size=16)
    made = sampler(_params(), jax.random.key(4), range(10), Schedule((80.0, 0.5)))
    assert np.abs(made - reference).max() > 0.1


# --- errors


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Schedule(()), "at least one"),
        (Schedule((0.8, 80.0)), "descend"),
        (Schedule((80.0, 80.0)), "descend"),
        (Schedule((90.0,)), "0.002 to 80"),
        (Schedule((80.0, 0.001)), "0.002 to 80"),
        (Schedule((80.0, 0.0)), "0.002 to 80"),
    ],
)
def test_impossible_schedules_raise(schedule, message):
    with pytest.raises(JcmError, match=message):
        schedule.check(0.002, 80.0)


_SAMPLING = Sampling(KarrasGrid(), (80.0, 0.8), 18, "heun")


def test_steps_of_a_consistency_model_take_its_good_levels():
    f = precond.Consistency(levels=18)
    assert f.schedule(_SAMPLING).sigmas == (80.0, 0.8)
    assert f.schedule(_SAMPLING, steps=1).sigmas == (80.0,)
    assert f.schedule(_SAMPLING, steps=2).sigmas == (80.0, 0.8)
    # More steps are spread over the grid that the model was trained on.
    assert f.schedule(_SAMPLING, steps=4).sigmas == tuple(
        _GRID[i] for i in (0, 4, 8, 12)
    )
    assert f.schedule(_SAMPLING, steps=17).sigmas == _GRID[:17]
    assert f.schedule(_SAMPLING, sigmas=(70, 3)).sigmas == (70.0, 3.0)
    assert [s.nfe for s in f.schedules(_SAMPLING)] == [1, 2]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (precond.EDM(), {"sigmas": (80.0,)}, "takes steps and solver, not sigmas"),
        (precond.EDM(), {"solver": "rk4"}, "solver='rk4' is unknown: use one of heun"),
        (precond.EDM(), {"steps": 1}, "steps=1 must be at least 2"),
        (precond.Consistency(), {"solver": "heun"}, "solver is for diffusion models"),
        (precond.Consistency(), {"steps": 0}, "steps=0 must be at least 1 and at most"),
        (precond.Consistency(), {"steps": 18}, "at most 17, since the model knows 18"),
        (precond.Consistency(), {"steps": 1, "sigmas": (80.0,)}, "were both given"),
        (precond.Consistency(), {"sigmas": (80.0, 1e-3)}, "must lie within"),
    ],
)
def test_a_schedule_of_another_kind_of_model_raises(kind, options, message):
    with pytest.raises(JcmError, match=message):
        kind.schedule(_SAMPLING, **options)


def test_a_schedule_counts_network_evaluations():
    assert Schedule((80.0,)).nfe == 1
    assert Schedule((80.0, 0.8)).nfe == 2
    assert ode_schedule(KarrasGrid(), 18, "heun").nfe == 35
    assert ode_schedule(KarrasGrid(), 18, "euler").nfe == 18


@pytest.mark.parametrize(
    ("count", "on_cpu", "elsewhere"),
    [(1, 8, 8), (9, 8, 8), (31, 8, 8), (32, 8, 64), (60, 64, 64), (1000, 64, 64)],
)
def test_a_few_images_are_made_in_a_small_batch(count, on_cpu, elsewhere):
    sampler = Sampler(gaussian.Denoiser(std=0.1), batch_size=64)
    assert sampler._batch_size(count) == on_cpu
    sampler._filled = sampler_lib._FILLED
    assert sampler._batch_size(count) == elsewhere


def test_labels_for_an_unconditional_model_raise(denoiser):
    with pytest.raises(JcmError, match="no classes"):
        Sampler(denoiser)(_params(), jax.random.key(0), [0], Schedule((80.0,)), [1])
