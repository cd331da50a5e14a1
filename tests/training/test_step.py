"""Tests of the training step: golden numbers, sharding, micro-batches."""

import dataclasses
import functools
import re

import flax.serialization
import golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jcm import config as config_lib
from jcm.diffusion import precond
from jcm.diffusion.denoiser import Denoiser
from jcm.diffusion.schedules import FixedScales
from jcm.methods import Batch, Frozen, Log, Losses
from jcm.methods.consistency import Consistency
from jcm.methods.method import Plain
from jcm.run import state
from jcm.runtime import sharding
from jcm.runtime.errors import JcmError
from jcm.training import averages as averages_lib
from jcm.training import optim
from jcm.training.step import Rules, make_train_step


def _settings(name="radam", **changes):
    """Returns `config.optim` with some fields changed."""
    config = config_lib.base().optim
    config.update({"name": name} | changes)
    return config


def _rules(optimizer, learning_rate=4e-4, averages=(), **changes):
    """Returns the rules of a step with a constant learning rate."""
    return Rules(
        optimizer=optimizer,
        learning_rate=lambda step: jnp.float32(learning_rate),
        averages={spec: averages_lib.parse(spec) for spec in averages},
        batch_size=4,
        **{"seed_key": jax.random.key(0)} | changes,
    )


@dataclasses.dataclass(frozen=True)
class _Replay(Consistency):
    """Takes the images, the noise and the indices of each step from a list."""

    draws: dict[str, jax.Array] | None = None

    def loss(self, params, head, frozen, batch, step):
        images, noise, index = (self.draws[k][step] for k in ("x", "z", "indices"))
        batch = batch._replace(images=images)
        return Losses(self.loss_at(params, frozen, batch, index, 18, noise))


@functools.cache
def _ten_steps():
    """Returns the final state, and pairs of measured and stored numbers."""
    stored = golden.cases("B_train_steps.npz")["cd"]
    steps = [f"step{i}" for i in range(10)]
    draws = {
        key: jnp.stack([stored[f"{step}/{key}"] for step in steps])
        for key in ("x", "z", "indices")
    }
    method = golden.consistency(_Replay, draws=draws)
    optimizer, rates = optim.create(_settings()), ("0.9999",)
    run = state.create(
        golden.params("params"), None, optimizer, keeps_target=False, averages=rates
    )
    # In the original run, the average started with other values than the parameters.
    run = dataclasses.replace(run, ema_params={"0.9999": golden.params("params_ema")})
    train_step = jax.jit(make_train_step(method, _rules(optimizer, averages=rates)))
    frozen = Frozen(teachers={"diffusion": golden.params("params_ema")})
    batch = {
        "image": jnp.zeros((4, 16, 16, 3), jnp.uint8),
        "label": jnp.zeros(4, jnp.int32),
        "notice": jnp.zeros(1, jnp.int32),
    }
    pairs = {}
    for step in steps:
        run, metrics = train_step(run, frozen, batch)
        moments = run.opt_state[1]
        measured = {
            "loss": metrics["loss"],
            "params_norm": golden.norm(run.params),
            "params_ema_norm": golden.norm(run.ema_params["0.9999"]),
            "mu_norm": golden.norm(moments.mu),
            "nu_norm": golden.norm(moments.nu),
            "count": moments.count,
        }
        for name, value in measured.items():
            pairs[f"{step}/{name}"] = (float(value), stored[f"{step}/{name}"])
    return run, pairs


def test_ten_steps_of_distillation_have_the_numbers_of_the_original():
    _, pairs = _ten_steps()
    assert len(pairs) == 60
    for name, (ours, theirs) in pairs.items():
        # The ten steps change the norms of parameters by a few millionths.
        tolerance = 5e-7 if "params" in name else 1e-4
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, err_msg=name)


def test_ten_steps_of_distillation_end_where_the_original_ends():
    run, _ = _ten_steps()
    file = golden.path("checkpoints_steps_cd/checkpoint_1")
    final = flax.serialization.msgpack_restore(file.read_bytes())
    for name, ours in {
        "params": run.params,
        "params_ema": run.ema_params["0.9999"],
        "mu": run.opt_state[1].mu,
        "nu": run.opt_state[1].nu,
    }.items():
        tree = final[name] if name in final else final["opt_state"]["0"][name]
        flat = flax.traverse_util.flatten_dict(tree, sep="/")
        theirs = golden.from_original(flat)
        scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
        for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
            if name.startswith("params"):  # Ten steps change them by a thousandth.
                assert golden.relative(a, b) < 1e-5
            else:  # Some gradients are 0 up to rounding.
                np.testing.assert_allclose(a, b, atol=1e-4 * scale, rtol=1e-3)


# --- invariances, on one small problem with a target and dropout


@functools.cache
def _problem():
    network = golden.network(dropout=0.2, ch_mult=(1,), attn_resolutions=())
    method = golden.consistency(
        denoiser=Denoiser(network, precond.Consistency()),
        teacher=None,
        scales=FixedScales(18, 0.5),
    )
    params = jax.tree.map(lambda p: p + 0.01, network.init(jax.random.key(0)))
    images = jax.random.randint(jax.random.key(1), (16, 16, 16, 3), 0, 256)
    batch = {
        "image": images.astype(jnp.uint8),
        "label": jnp.zeros(16, jnp.int32),
        "notice": jnp.zeros(8, jnp.int32),
    }
    return method, params, batch


def _two_steps(mesh, min_bytes=0.0, **options):
    method, params, batch = _problem()
    optimizer = optax.identity()  # Adaptive ones turn rounding of 0 into a step.
    rates = ("0.9", "0.5")
    run = state.create(params, None, optimizer, keeps_target=True, averages=rates)
    placement = sharding.shard_tree(mesh, run, sharding.Rules(min_bytes))
    run = jax.device_put(run, placement)
    batch = jax.device_put(batch, sharding.batch(mesh))
    rules = _rules(optimizer, 0.1, rates, seed_key=jax.random.key(2), **options)
    train_step = jax.jit(
        make_train_step(method, rules), out_shardings=(placement, None)
    )
    for _ in range(2):
        run, metrics = train_step(run, Frozen(), batch)
    return run, metrics


@pytest.fixture(scope="module")
def one_device():
    return _two_steps(sharding.make_mesh(devices=jax.devices()[:1]))


def _assert_equal(one, other):
    np.testing.assert_allclose(one[1]["loss"], other[1]["loss"], rtol=1e-5)
    np.testing.assert_allclose(one[1]["grad_norm"], other[1]["grad_norm"], rtol=1e-4)
    for a, b in zip(*map(jax.tree.leaves, (one[0], other[0])), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=2e-5)


@pytest.mark.parametrize("fsdp", [1, 4])
def test_eight_devices_equal_one(one_device, fsdp):
    run, metrics = _two_steps(sharding.make_mesh(fsdp=fsdp))
    _assert_equal(one_device, (run, metrics))
    kernel = run.ema_params["0.9"]["conv_in"]["kernel"]
    assert kernel.sharding.is_fully_replicated == (fsdp == 1)


def test_micro_batches_equal_the_batch(one_device):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    _assert_equal(one_device, _two_steps(mesh, accumulate=2))


def test_averages_follow_at_their_rates():
    new, old = {"w": jnp.full(3, 2.0)}, {"w": jnp.zeros(3)}
    np.testing.assert_allclose(averages_lib.ema(old, new, 0.75)["w"], 0.5)
    np.testing.assert_array_equal(averages_lib.ema(old, new, 0.0)["w"], new["w"])


# --- placement


def test_the_largest_divisible_axis_is_split_over_fsdp():
    mesh = sharding.make_mesh(fsdp=4)
    shapes = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32)
        for name, shape in {
            "kernel": (3, 3, 64, 128),
            "odd": (3, 3, 5, 7),
            "small": (8,),
            "scalar": (),
        }.items()
    }
    placed = sharding.shard_tree(mesh, shapes, sharding.Rules(100))
    assert placed["kernel"].spec == PartitionSpec(None, None, None, "fsdp")
    for name in ("odd", "small", "scalar"):
        assert placed[name].is_fully_replicated
    shapes = sharding.with_placement(shapes, lambda _: placed)
    per_device = sharding.bytes_per_device(shapes)
    assert per_device == 4 * (3 * 3 * 64 * 32 + 3 * 3 * 5 * 7 + 8 + 1)


def test_each_example_has_its_own_key():
    method, _, _ = _problem()
    keys = jax.random.split(jax.random.key(0), 4)
    batch = Batch(jnp.zeros((4, 2, 2, 1)), None, keys, jnp.arange(4))
    noise = batch.normal(1)
    one = Batch(jnp.zeros((1, 2, 2, 1)), None, keys[2:3], jnp.arange(1)).normal(1)
    np.testing.assert_array_equal(noise[2:3], one)
    assert np.unique(np.asarray(noise)).size == noise.size
    assert np.abs(np.asarray(noise - batch.normal(2))).min() > 0
    assert method.keeps_target


def test_with_bfloat16_sums_are_float32():
    """This holds for state, loss and norms, the time embedding and all statistics."""
    network = golden.network(dtype="bfloat16", ch_mult=(1, 1), attn_resolutions=())
    method = golden.consistency(
        denoiser=Denoiser(network, precond.Consistency()),
        teacher=None,
        scales=FixedScales(18, 0.5),
    )
    optimizer, params = optim.create(_settings()), network.init(jax.random.key(0))
    run = state.create(params, None, optimizer, keeps_target=True, averages=("0.9",))
    batch = {
        "image": jnp.zeros((4, 16, 16, 3), jnp.uint8),
        "label": jnp.zeros(4, jnp.int32),
        "notice": jnp.zeros(1, jnp.int32),
    }
    step = make_train_step(method, _rules(optimizer, averages=("0.9",)))
    jaxpr, made = jax.make_jaxpr(step, return_shape=True)(run, Frozen(), batch)
    for leaf in jax.tree.leaves(made):
        assert leaf.dtype in (jnp.float32, jnp.int32)
    text = str(jaxpr)
    assert text.count("conv_general_dilated") > 20 and "bf16" in text
    # Means over an image, as in a normalisation, are float32. (Gradients of broadcast
    # biases are sums in bfloat16, whose order XLA chooses.)
    roots = re.findall(r":(\w+)\[[^]]*\] = (?:rsqrt|sin|cos|log|exp)\b", text)
    assert len(roots) > 10 and set(roots) == {"f32"}, set(roots)


def _line(skip_nonfinite):
    """Returns a step that fits a number to the mean of images that are not white."""

    class Line(Plain):
        denoiser = Denoiser(golden.network(), precond.EDM())

        def loss(self, params, head, frozen, batch, step):
            error = params["w"] - batch.images.mean(axis=(1, 2, 3))
            broken = jnp.where(batch.images.min() == 1, jnp.nan, 1.0)
            return Losses(broken * error**2)

    optimizer = optim.create(_settings())
    run = state.create(
        {"w": jnp.ones(())}, None, optimizer, keeps_target=False, averages=("0.5",)
    )
    rules = _rules(optimizer, 0.1, ("0.5",), skip_nonfinite=skip_nonfinite)
    return run, jax.jit(make_train_step(Line(), rules))


@pytest.mark.parametrize("skip", [True, False])
def test_a_skipped_step_changes_nothing(skip):
    run, step = _line(skip)
    white = {
        "image": jnp.full((4, 2, 2, 1), 255, jnp.uint8),
        "label": jnp.zeros(4, jnp.int32),
        "notice": jnp.zeros(1, jnp.int32),
    }
    grey = white | {"image": jnp.full((4, 2, 2, 1), 100, jnp.uint8)}
    once, _ = step(run, Frozen(), grey)
    after, metrics = step(once, Frozen(), white)
    assert not np.isfinite(metrics["grad_norm"])
    assert np.isfinite(after.params["w"]) == skip
    if not skip:
        return
    assert after.step == 2 and metrics["update_norm"] == 0
    for name in ("params", "opt_state"):
        for a, b in zip(
            *(jax.tree.leaves(getattr(each, name)) for each in (after, once)),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
    # The next step is the same as without the skipped one.
    ours, _ = step(after, Frozen(), grey)
    theirs, _ = step(once, Frozen(), grey)
    assert ours.params == theirs.params


# --- what a method may ask of the trainer


class _Fit(Plain):
    """Fits w to the mean of the images, and a head to the places of a quarter."""

    denoiser = Denoiser(golden.network(), precond.EDM())

    def init_head(self, key):
        return {"h": jax.random.normal(key, ())}

    def loss(self, params, head, frozen, batch, step):
        mean = batch.images.mean(axis=(1, 2, 3))
        quarter = batch.place % 4 == 0
        error = params["w"] - mean
        logs = {
            "error": Log(jnp.abs(error)),
            "quarter_place": Log(
                jnp.where(quarter, batch.place * 1.0, jnp.nan), where=quarter
            ),
            "never": Log(error, where=batch.place < 0),
        }
        head_error = jnp.where(quarter, head["h"] - batch.place, 0.0)
        return Losses(error**2 + head_error**2, logs)

    def curriculum(self, step):
        return {"restart": step == 1}


def _fit(**changes):
    """Returns the first state of `_Fit`, its step and a batch of 16 images."""
    optimizer = optim.create(_settings("adam"))
    params, head = {"w": jnp.ones(())}, _Fit().init_head(jax.random.key(5))
    run = state.create(params, head, optimizer, keeps_target=False, averages=("0.5",))
    rules = _rules(optimizer, 0.1, ("0.5",), **changes)
    batch = {
        "image": jnp.arange(16, dtype=jnp.uint8).reshape(16, 1, 1, 1),
        "label": jnp.zeros(16, jnp.int32),
        "notice": jnp.zeros(1, jnp.int32),
    }
    return run, jax.jit(make_train_step(_Fit(), rules)), batch


@pytest.mark.parametrize("accumulate", [1, 4])
def test_logs_are_sums_and_counts_over_the_whole_batch(accumulate):
    run, step, batch = _fit(accumulate=accumulate)
    after, metrics = step(run, Frozen(), batch)
    pixels = np.arange(16) / 127.5 - 1
    logs = {name: tuple(map(float, log)) for name, log in metrics["logs"].items()}
    assert logs["error"] == (pytest.approx(np.abs(1 - pixels).sum(), rel=1e-6), 16)
    assert logs["quarter_place"] == (0 + 4 + 8 + 12, 4)
    assert logs["never"] == (0, 0)
    assert metrics["learning_rate"] == np.float32(0.1)
    # The head is trained by its own optimiser: a first step of Adam has length 0.1.
    moved = float(after.head["h"] - run.head["h"])
    assert abs(moved) == pytest.approx(0.1, rel=1e-4)
    moment = after.head_opt_state[1].mu["h"]
    slope = np.mean([2 * (run.head["h"] - i) if i % 4 == 0 else 0 for i in range(16)])
    assert float(moment) == pytest.approx(0.1 * slope, rel=1e-5)
    assert set(after.ema_params) == {"0.5"} and set(after.ema_params["0.5"]) == {"w"}


@pytest.mark.parametrize("name", ["loss", "grad_norm", "restart", "skipped", "kimg"])
def test_a_method_cannot_log_under_a_name_of_the_log(monkeypatch, name):
    run, step, batch = _fit()
    loss = _Fit.loss

    def renamed(self, *args):
        found = loss(self, *args)
        return found._replace(logs={name: found.logs["error"]})

    monkeypatch.setattr(_Fit, "loss", renamed)
    with pytest.raises(
        JcmError, match=f"the method logs '{name}', under which the log"
    ):
        step(run, Frozen(), batch)


def test_a_restart_makes_the_optimisers_new_after_its_step():
    run, step, batch = _fit()
    counts = []
    for _ in range(3):
        run, _ = step(run, Frozen(), batch)
        counts.append((int(run.opt_state[1].count), int(run.head_opt_state[1].count)))
        if counts[-1] == (0, 0):
            assert not np.any(run.opt_state[1].mu["w"])
    assert counts == [(1, 1), (0, 0), (1, 1)]


def test_nonfinite_gradients_can_become_zero():
    """The gradient of |x| written as sqrt(x^2) is NaN at 0, as in ECT with c = 0."""

    class Norm(_Fit):
        def init_head(self, key):
            return None

        def loss(self, params, head, frozen, batch, step):
            mean = batch.images.mean(axis=(1, 2, 3))
            return Losses(jnp.sqrt((params["w"] - mean) ** 2))

    optimizer = optim.create(_settings("adam"))
    run = state.create(
        {"w": jnp.ones(())}, None, optimizer, keeps_target=False, averages=()
    )
    white = {
        "image": jnp.full((4, 1, 1, 1), 255, jnp.uint8),
        "label": jnp.zeros(4, jnp.int32),
        "notice": jnp.zeros(1, jnp.int32),
    }
    for zero in (True, False):
        step = make_train_step(Norm(), _rules(optimizer, 0.1, zero_nonfinite=zero))
        after, metrics = step(run, Frozen(), white)
        assert np.isfinite(metrics["grad_norm"]) == zero
        assert (after.params["w"] == 1) == zero


def test_a_head_that_is_not_finite_is_seen_like_the_student():
    class Broken(_Fit):
        def loss(self, params, head, frozen, batch, step):
            # The value is finite; its gradient at 0 is not.
            return Losses(jnp.sqrt(jnp.abs(head["h"])) + params["w"] * jnp.ones(16))

    run, _, batch = _fit()
    run = dataclasses.replace(run, head={"h": jnp.zeros(())})
    optimizer = optim.create(_settings("adam"))
    for skip in (True, False):
        rules = _rules(optimizer, 0.1, ("0.5",), skip_nonfinite=skip)
        after, metrics = make_train_step(Broken(), rules)(run, Frozen(), batch)
        assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["grad_norm"])
        assert np.isfinite(after.head["h"]) == skip
