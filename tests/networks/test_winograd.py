"""Tests of the 3×3 convolution against float64, and of its derivatives."""

import golden
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from jcm import networks
from jcm.networks import layers, winograd

# Tiles fit the first size; the second has a part of a tile at both ends.
_SIZES = [(16, 12), (13, 15)]


def _arrays(size, c_in=3, c_out=5):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, *size, c_in))
    weight = jax.random.normal(keys[1], (3, 3, c_in, c_out))
    return x, weight, jax.random.normal(keys[2], (2, *size, c_out))


def _xla(x, weight):
    return jax.lax.conv_general_dilated(
        x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _exact(x, weight):
    """Returns the convolution in float64, one tap after the other."""
    x, weight = (np.asarray(each, np.float64) for each in (x, weight))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    return sum(
        padded[:, i : i + height, j : j + width] @ weight[i, j]
        for i in range(3)
        for j in range(3)
    )


def _error(ours, expected):
    return np.max(np.abs(ours - expected)) / np.std(expected)


@pytest.mark.parametrize("size", _SIZES)
def test_equals_the_sum_over_taps_in_float64(size):
    x, weight, _ = _arrays(size)
    assert _error(winograd.convolve(x, weight), _exact(x, weight)) < 5e-6


def test_the_transforms_are_exact():
    inputs, filters, outputs = winograd._matrices()
    rng = np.random.default_rng(0)
    tile, taps = rng.normal(size=6), rng.normal(size=3)
    ours = outputs @ ((filters @ taps) * (inputs @ tile))
    np.testing.assert_allclose(ours, np.correlate(tile, taps), atol=1e-13)


@pytest.mark.parametrize("size", _SIZES)
def test_derivatives_of_first_and_second_order_equal_those_of_xla(size):
    x, weight, y = _arrays(size)

    def derivatives(convolve):
        def loss(x, weight):
            value, tangent = jax.jvp(convolve, (x, weight), (x**2, weight**2))
            return jnp.sum(jnp.sin(value) * y + tangent * jnp.cos(y))

        return jax.grad(loss, (0, 1))(x, weight)

    for ours, expected in zip(
        derivatives(winograd.convolve), derivatives(_xla), strict=True
    ):
        assert _error(ours, expected) < 1e-5


def test_batched_axes_are_convolved_each():
    x, weight, _ = _arrays(_SIZES[0])
    images, filters = jnp.stack([x, 2 * x]), jnp.stack([weight, -weight])
    found = jax.vmap(winograd.convolve)(images, filters)
    expected = winograd.convolve(x, weight)
    assert _error(found[0], expected) < 5e-6
    assert _error(found[1], -2 * expected) < 5e-6
    by_rows = jax.vmap(winograd.convolve, (1, None), 1)
    images = jnp.stack([x, 2 * x], axis=1)
    assert "convolve_3x3" in str(jax.make_jaxpr(by_rows)(images, weight))
    found = by_rows(images, weight)
    assert _error(found[:, 1], 2 * expected) < 5e-6


def test_no_images_have_no_outputs():
    x, weight, y = _arrays(_SIZES[0])
    assert winograd.convolve(x[:0], weight).shape == (0, *y.shape[1:])
    gradient = jax.grad(lambda w: jnp.sum(winograd.convolve(x[:0], w)))(weight)
    assert gradient.shape == weight.shape and not gradient.any()


def test_without_jit():
    x, weight, _ = _arrays(_SIZES[0])
    with jax.disable_jit():
        found = winograd.convolve(x, weight)
    assert _error(found, winograd.convolve(x, weight)) < 5e-6


def test_other_types_are_convolved_by_xla():
    x, weight, _ = (each.astype(jnp.bfloat16) for each in _arrays(_SIZES[0]))
    np.testing.assert_array_equal(winograd.convolve(x, weight), _xla(x, weight))


@pytest.mark.parametrize("kind", ["Auto", "Explicit", "Manual"])
def test_gradients_of_devices_are_summed(kind):
    x, weight, y = _arrays((16, 16), 32, 32)
    axis_type = jax.sharding.AxisType[kind if kind != "Manual" else "Auto"]
    mesh = jax.make_mesh((2,), ("data",), (axis_type,), devices=jax.devices()[:2])
    split = jax.sharding.PartitionSpec("data")
    x, y = (
        jax.device_put(each, jax.sharding.NamedSharding(mesh, split)) for each in (x, y)
    )

    def loss(convolve, x, weight, y):
        return jnp.mean((convolve(x, weight) - y) ** 2)

    def total(convolve):
        if kind != "Manual":
            return lambda weight: loss(convolve, x, weight, y)
        mapped = jax.shard_map(
            lambda *given: jax.lax.pmean(loss(convolve, *given), "data"),
            mesh=mesh,
            in_specs=(split, jax.sharding.PartitionSpec(), split),
            out_specs=jax.sharding.PartitionSpec(),
        )
        return lambda weight: mapped(x, weight, y)

    with jax.set_mesh(mesh):
        weight = jax.device_put(weight, jax.sharding.PartitionSpec())
        found = jax.jit(jax.grad(total(winograd.convolve)))(weight)
        expected = jax.jit(jax.grad(total(_xla)))(weight)
    assert _error(found, expected) < 1e-5


def test_a_network_computes_the_same_with_and_without(monkeypatch):
    """At this size, the convolutions of both levels have tiles enough."""
    sizes = golden.CONFIG | {"nf": 32, "ch_mult": (1,), "attn_resolutions": ()}
    network = networks.create(sizes, image_size=16, image_channels=3, num_classes=0)
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(2), leaf.shape),
        network.init(jax.random.key(0)),  # in which the last layers are almost 0
    )
    x = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    given = networks.Conditions(jnp.array([-1.0, 1.0]))

    def found():
        def loss(params):  # a new function, so that JAX traces it again
            return jnp.sum(network(params, x, given) ** 2)

        program = jax.make_jaxpr(loss)(params)
        return "convolve_3x3" in str(program), jax.jit(jax.value_and_grad(loss))(params)

    fast, ours = found()
    monkeypatch.setattr(winograd, "pays_off", lambda x, weight: False)
    plain, expected = found()
    assert fast and not plain
    assert float(ours[0]) == pytest.approx(float(expected[0]), rel=1e-5)
    # Some gradients are 0 but for rounding, so all of them are compared together.
    ours, expected = (
        jax.flatten_util.ravel_pytree(each[1])[0] for each in (ours, expected)
    )
    assert jnp.linalg.norm(ours - expected) < 1e-5 * jnp.linalg.norm(expected)


def test_a_setting_that_changes_the_result_is_not_ignored():
    x, weight, _ = _arrays((16, 16), 32, 32)
    settings = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "rhs_dilation": (2, 2)}
    given = (x, weight, (1, 1), "SAME")
    np.testing.assert_array_equal(
        layers.convolve(*given, **settings),
        jax.lax.conv_general_dilated(*given, **settings),
    )


def test_devices_exchange_nothing_for_a_convolution():
    x, weight, _ = _arrays(_SIZES[0])
    mesh = jax.sharding.Mesh(jax.devices()[:2], "data")
    place = [
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        for axes in (("data",), ())
    ]
    compiled = jax.jit(winograd.convolve, in_shardings=place).lower(x, weight).compile()
    for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert name not in compiled.as_text()
    found = compiled(*jax.device_put((x, weight), tuple(place)))
    assert _error(found, winograd.convolve(x, weight)) < 5e-6


@pytest.mark.parametrize(
    ("shape", "size", "name"),
    [
        ((2, 16, 16, 32), 3, "convolve_3x3"),
        ((2, 8, 8, 32), 3, "conv_general_dilated"),
        ((2, 16, 16, 16), 3, "conv_general_dilated"),
        ((2, 16, 16, 32), 1, "dot_general"),
        ((2, 16, 16, 32), 5, "conv_general_dilated"),
    ],
)
def test_a_layer_is_computed_the_fastest_way(shape, size, name):
    x = jnp.zeros(shape)
    weight = jnp.zeros((size, size, shape[-1], shape[-1]))

    def layer(x, weight):
        return layers.convolve(
            *(x, weight, (1, 1), "SAME"), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    program = str(jax.make_jaxpr(layer)(x, weight))
    assert f"= {name}" in program
    lowered = jax.jit(layer).trace(x, weight).lower(lowering_platforms=("tpu",))
    assert ("convolution" in lowered.as_text()) == (size > 1)
