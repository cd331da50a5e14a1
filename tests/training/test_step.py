"""Tests of the training step: golden numbers, sharding, micro-batches."""

import dataclasses
import functools
import re
import types

import flax.serialization
import golden
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jcm.diffusion import precond
from jcm.diffusion.denoiser import Denoiser
from jcm.diffusion.schedules import FixedScales
from jcm.methods import Batch, Frozen
from jcm.methods.consistency import Consistency
from jcm.run import state
from jcm.runtime import sharding
from jcm.training import averages, optim
from jcm.training.step import make_train_step

_RADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "warmup_kimg": 0.0, "grad_clip": 0.0}


def _optimizer(name="radam", learning_rate=4e-4, **changes):
    config = _RADAM | {"name": name, "learning_rate": learning_rate} | changes
    return optim.create(ml_collections.ConfigDict(config), 4)


@dataclasses.dataclass(frozen=True)
class _Replay(Consistency):
    """Takes the images, the noise and the indices of each step from a list."""

    draws: dict[str, jax.Array] | None = None

    def loss(self, params, frozen, batch, step):
        images, noise, index = (self.draws[k][step] for k in ("x", "z", "indices"))
        batch = batch._replace(images=images)
        return self.loss_at(params, frozen, batch, index, 18, noise)


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
    optimizer = _optimizer()
    run = state.create(
        golden.params("params"), optimizer, keeps_target=False, ema_rates=(0.9999,)
    )
    # In the original run, the average started with other values than the parameters.
    run = dataclasses.replace(run, ema_params={"0.9999": golden.params("params_ema")})
    train_step = jax.jit(make_train_step(method, optimizer, seed_key=jax.random.key(0)))
    frozen = Frozen(teacher=golden.params("params_ema"))
    batch = {
        "image": jnp.zeros((4, 16, 16, 3), jnp.uint8),
        "label": jnp.zeros(4, jnp.int32),
        "stop": jnp.zeros(1, jnp.int32),
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
        "stop": jnp.zeros(8, jnp.int32),
    }
    return method, params, batch


def _two_steps(mesh, min_bytes=0.0, **options):
    method, params, batch = _problem()
    optimizer = optax.sgd(0.1)  # Adaptive ones turn rounding of 0 into a step.
    run = state.create(params, optimizer, keeps_target=True, ema_rates=(0.9, 0.5))
    placement = sharding.shard_tree(mesh, run, sharding.Rules(min_bytes))
    run = jax.device_put(run, placement)
    batch = jax.device_put(batch, sharding.batch(mesh))
    train_step = jax.jit(
        make_train_step(method, optimizer, seed_key=jax.random.key(2), **options),
        out_shardings=(placement, None),
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
    _assert_equal(one_device, _two_steps(mesh, accumulate=4))


def test_averages_follow_at_their_rates():
    new, old = {"w": jnp.full(3, 2.0)}, {"w": jnp.zeros(3)}
    np.testing.assert_allclose(averages.ema(old, new, 0.75)["w"], 0.5)
    np.testing.assert_array_equal(averages.ema(old, new, 0.0)["w"], new["w"])


# --- optimisers


def test_warm_up_is_linear_in_images():
    optimizer = _optimizer(
        "adam", 1.0, warmup_kimg=0.04, eps=1e-30
    )  # Ten steps of 4 images.
    params = {"w": jnp.ones(2)}
    opt_state = optimizer.init(params)
    sizes = []
    for _ in range(12):
        updates, opt_state = optimizer.update(params, opt_state, params)
        sizes.append(-float(updates["w"][0]))
    # With a constant gradient, a step of Adam has unit length.
    np.testing.assert_allclose(sizes, [*np.arange(10) / 10, 1, 1], atol=1e-3)


def test_long_gradients_are_clipped():
    gradient = {"w": jnp.array([30.0, 40.0])}
    clipped, whole = (_optimizer("adam", 1.0, grad_clip=clip) for clip in (1.0, 0.0))
    moments = [
        optimizer.update(gradient, optimizer.init(gradient), gradient)[1][1].mu["w"]
        for optimizer in (clipped, whole)
    ]
    np.testing.assert_allclose(moments[0], 0.1 * np.array([0.6, 0.8]), rtol=1e-5)
    np.testing.assert_allclose(moments[1], 0.1 * np.array([30, 40]), rtol=1e-5)


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
    batch = Batch(jnp.zeros((4, 2, 2, 1)), None, keys)
    noise = batch.normal(1)
    one = Batch(jnp.zeros((1, 2, 2, 1)), None, keys[2:3]).normal(1)
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
    optimizer = _optimizer()
    run = state.create(
        network.init(jax.random.key(0)), optimizer, keeps_target=True, ema_rates=(0.9,)
    )
    batch = {
        "image": jnp.zeros((4, 16, 16, 3), jnp.uint8),
        "label": jnp.zeros(4, jnp.int32),
        "stop": jnp.zeros(1, jnp.int32),
    }
    step = make_train_step(method, optimizer, seed_key=jax.random.key(0))
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

    def loss(params, frozen, batch, step):
        error = params["w"] - batch.images.mean(axis=(1, 2, 3))
        return jnp.where(batch.images.min() == 1, jnp.nan, 1.0) * error**2

    arch = types.SimpleNamespace(num_classes=0)
    network = types.SimpleNamespace(arch=arch)
    method = types.SimpleNamespace(
        denoiser=types.SimpleNamespace(network=network),
        loss=loss,
        curriculum=lambda step: {},
        keeps_target=False,
    )
    optimizer = _optimizer(learning_rate=0.1)
    run = state.create(
        {"w": jnp.ones(())}, optimizer, keeps_target=False, ema_rates=(0.5,)
    )
    make = getattr(make_train_step, "__wrapped__", make_train_step)
    step = make(
        method,
        optimizer,
        seed_key=jax.random.key(0),
        skip_nonfinite=skip_nonfinite,
    )
    return run, jax.jit(step)


@pytest.mark.parametrize("skip", [True, False])
def test_a_skipped_step_changes_nothing(skip):
    run, step = _line(skip)
    white = {
        "image": jnp.full((4, 2, 2, 1), 255, jnp.uint8),
        "label": jnp.zeros(4, jnp.int32),
        "stop": jnp.zeros(1, jnp.int32),
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
