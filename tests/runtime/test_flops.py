"""Tests of the count of floating-point operations against known numbers."""

import types

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from jcm.commands.benchmark import speed
from jcm.networks import Conditions, layers, winograd
from jcm.runtime import flops
from jcm.runtime.errors import JcmError


def _count(function, *shapes, **settings):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return flops.count(jax.jit(function).trace(*arrays).jaxpr, **settings)


def _conv(x, kernel, stride=1):
    return jax.lax.conv_general_dilated(
        *(x, kernel, (stride, stride), "SAME"),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def test_products_and_convolutions_by_hand():
    assert _count(jnp.matmul, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    assert _count(jnp.matmul, (2, 3, 5), (2, 5, 7)) == 2 * 2 * 3 * 5 * 7
    # Each of 2 x 8 x 8 x 6 outputs takes 3x3 taps of 4 channels.
    once = 2 * (3 * 3 * 4) * (2 * 8 * 8 * 6)
    shapes = (2, 8, 8, 4), (3, 3, 4, 6)
    assert _count(_conv, *shapes) == once
    assert _count(lambda x, k: _conv(x, k, 2), *shapes) == once / 4
    assert _count(lambda x: jnp.sin(x) + x, (9, 9)) == 0


@pytest.mark.parametrize("stride", [1, 2])
def test_a_gradient_is_three_times_the_value(stride):
    def loss(x, kernel):
        return jnp.sum(_conv(x, kernel, stride) ** 2)

    shapes = (2, 8, 8, 4), (3, 3, 4, 6)
    value = _count(loss, *shapes)
    assert _count(jax.value_and_grad(loss, (0, 1)), *shapes) == 3 * value


def test_winograd_counts_as_a_convolution():
    def gradients(convolve):
        return jax.value_and_grad(lambda *args: jnp.sum(convolve(*args) ** 2), (0, 1))

    shapes = (2, 16, 16, 4), (3, 3, 4, 6)
    expected = _count(gradients(_conv), *shapes)
    assert _count(gradients(winograd.convolve), *shapes) == expected


def test_recomputation_is_counted():
    def loss(a, b, x):
        return jnp.sum(jnp.sin(x @ a) @ b)

    shapes = [(4, 4)] * 3
    # There are two products, and three more for the gradients of a and b.
    assert _count(jax.value_and_grad(loss, (0, 1)), *shapes) == 5 * 2 * 4**3
    again = jax.value_and_grad(jax.checkpoint(loss), (0, 1))
    assert _count(again, *shapes) == 6 * 2 * 4**3


def test_every_iteration_of_a_loop_is_counted():
    def five(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=5)[0]

    assert _count(five, (3, 3), (3, 3)) == 5 * 2 * 27
    assert _count(five, (3, 3), (3, 3), loops_once=True) == 2 * 27
    unrolled = jax.jit(
        lambda x, w: jax.lax.scan(
            lambda x, _: (x @ w, None), x, None, length=5, unroll=True
        )[0]
    )
    one = jax.ShapeDtypeStruct((3, 3), jnp.float32)
    assert flops.count(unrolled.trace(one, one).jaxpr) == 5 * 2 * 27
    assert flops.count(unrolled.trace(one, one).jaxpr, loops_once=True) == 5 * 2 * 27


def test_the_count_equals_that_of_the_compiler():
    """The function consists almost entirely of products, which the compiler counts."""

    def function(x, kernel, w):
        return jnp.reshape(_conv(x, kernel), (2, -1)) @ w

    shapes = (2, 8, 8, 16), (1, 1, 16, 32), (8 * 8 * 32, 16)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    told = jax.jit(function).lower(*arrays).compile().cost_analysis()["flops"]
    assert _count(function, *shapes) == pytest.approx(told, rel=0.02)


def test_the_count_of_a_step_does_not_depend_on_micro_batches_or_devices(tiny):
    def count(**changes):
        config = tiny("digits_cd", **changes)
        made = speed.create_program(config, jax.devices())
        return flops.count(made.traced.jaxpr)

    whole = count()
    assert count(**{"train.accumulate": 2}) == whole
    assert count(**{"mesh.fsdp": 4}) == whole
    # Twice the teacher, once the target, and three times the student: 6 networks.
    made = speed.create_program(tiny("digits_cd"), jax.devices())
    x = jax.ShapeDtypeStruct((16, 8, 8, 1), jnp.float32)
    sigma = jax.ShapeDtypeStruct((16,), jnp.float32)
    network = made.network
    traced = jax.jit(network).trace(network.shapes, x, Conditions(sigma))
    once = flops.count(traced.jaxpr)
    assert whole == pytest.approx(6 * once, rel=0.02)


def test_counts_of_the_published_networks():
    """The numbers were computed by hand from the sizes of layers, to three digits."""
    from jcm import config as config_lib
    from jcm.model import build

    for name, size, giga in (("cifar10_cd", 32, 42.4), ("imagenet64_cd", 64, 219)):
        config = config_lib.load(f"configs/{name}.py")
        network = build.network(config, num_classes=1000)
        shapes = [(1, size, size, 3), (1,)]
        x, sigma = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
        labels = (
            jax.ShapeDtypeStruct((1,), jnp.int32) if network.arch.num_classes else None
        )
        given = Conditions(sigma, labels)
        program = jax.jit(network).trace(network.shapes, x, given)
        assert flops.count(program.jaxpr) / 1e9 == pytest.approx(giga, rel=0.01)


def test_what_fits_on_described_devices(tiny, monkeypatch):
    described = types.SimpleNamespace(devices=jax.devices()[:4])
    asked = []

    def get(name, platform, **several):
        asked.append((name, platform, several))
        return described

    monkeypatch.setattr(speed.topologies, "get_topology_desc", get)
    found = speed.fit(tiny("digits_cd"), "v5e:2x2", slices=2)
    assert asked == [("v5e:2x2", "tpu", {"num_slices": 2})]
    assert found["devices"] == 4 and found["compile_seconds"] > 0
    assert found["train_planned_memory_gib"] > 0
    # Only the compiler for TPUs estimates a time.
    assert found["estimated_train_step_seconds"] is None
    assert found["estimated_train_step_gib"] > 0
    with pytest.raises(JcmError, match="batch_size=6 must be a multiple of .* 4 x 1"):
        speed.fit(tiny("digits_cd", **{"train.batch_size": 6}), "v5e:2x2")


def test_an_impossible_topology_raises(tiny):
    with pytest.raises(JcmError, match="cannot compile for --topology=v5e:5x5"):
        speed.fit(tiny("digits_cd"), "v5e:5x5")


@pytest.mark.parametrize("differentiate", [False, True])
def test_attention_by_cudnn_has_the_same_count(differentiate, monkeypatch):
    # Tracing needs no GPU, if the check for one is disabled.
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda _: False)
    head = jax.ShapeDtypeStruct((2, 256, 3, 8), jnp.bfloat16)
    counts = []
    for known in (False, True):
        monkeypatch.setattr(layers, "_has_kernels", lambda *_, known=known: known)

        def total(*heads):
            return jnp.sum(layers.attention(*heads).astype(jnp.float32))

        function = jax.grad(total, (0, 1, 2)) if differentiate else total
        program = jax.jit(function).trace(*[head] * 3).jaxpr
        assert ("dot_product_attention_fwd" in str(program)) == known
        counts.append(flops.count(program))
    assert counts == [2 * 2 * 2 * 256 * 256 * 3 * 8 * (3 if differentiate else 1)] * 2


def test_which_attention_cudnn_supports():
    def has(
        width=64, dtype=jnp.bfloat16, platform="gpu", version="cuda 13000", chip="9.0"
    ):
        client = types.SimpleNamespace(platform_version=version)
        device = types.SimpleNamespace(
            platform=platform, client=client, compute_capability=chip
        )
        return layers._has_kernels(device, width, jnp.dtype(dtype))

    assert has()
    assert has(chip="12.0")
    assert has(chip="8.0", width=128)
    assert not has(chip="7.5")  # The compute capability of a T4.
    assert not has(dtype=jnp.float32)
    assert not has(width=256)
    assert not has(width=12)
    assert not has(platform="tpu")
    assert not has(version="rocm 60000")
    here = jax.devices("cpu")[0]
    assert not layers._has_kernels(here, 64, jnp.dtype(jnp.bfloat16))
