"""Tests of the 3×3 convolution against float64, and of its derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
