"""Tests of FIR resampling against golden numbers."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcm.networks import fir

_KERNELS = {
    "k1331": (1, 3, 3, 1),
    "kbox": (1, 1),
    "k121": (1, 2, 1),
    "kasym": (1, 2, 3, 4),
}
_OPERATIONS = {
    "upsample_2d": lambda x, w, k: fir.upsample(x, k),
    "downsample_2d": lambda x, w, k: fir.downsample(x, k),
    "conv_downsample_2d": fir.conv_downsample,
    "upsample_conv_2d": fir.conv_upsample,
}


@pytest.mark.parametrize("operation", _OPERATIONS)
@pytest.mark.parametrize("kernel", _KERNELS)
def test_equals_the_original(kernel, operation):
    data = golden.arrays("E_fir.npz")
    expected = data[f"x8/{kernel}/gain1/{operation}"]
    x = data["x8"]
    weight = jnp.asarray(data[f"w{x.shape[-1]}"])
    ours = _OPERATIONS[operation](x, weight, _KERNELS[kernel])
    assert golden.relative(ours, expected) < 1e-6


def test_down_after_up_keeps_a_constant_inside():
    x = jnp.ones((1, 8, 8, 2))
    up = fir.upsample(x, (1, 3, 3, 1))
    np.testing.assert_allclose(up[:, 2:-2, 2:-2], 1, rtol=1e-6)
    # Borders are padded with zeros, so an edge loses a quarter along each axis.
    np.testing.assert_allclose(up[0, 0, 8], 0.75, rtol=1e-6)
    down = fir.downsample(up, (1, 3, 3, 1))
    np.testing.assert_allclose(down[:, 2:-2, 2:-2], 1, rtol=1e-6)


@pytest.mark.parametrize("change", [fir.upsample, fir.downsample])
@pytest.mark.parametrize("kernel", [*_KERNELS.values(), (1,), (1, 2, 3, 4, 5, 6)])
def test_the_gradient_is_that_of_the_matrix(kernel, change):
    # Odd and even sizes; the columns of the matrix are the images of single pixels.
    pixels = jnp.eye(6 * 7).reshape(-1, 6, 7, 1)
    matrix = change(pixels, kernel)
    gradient = jax.random.normal(jax.random.key(0), matrix.shape[1:])[None]
    x = jnp.zeros((1, 6, 7, 1))
    (found,) = jax.vjp(lambda x: change(x, kernel), x)[1](gradient)
    expected = jnp.sum(matrix * gradient, axis=(1, 2, 3)).reshape(x.shape)
    np.testing.assert_allclose(found, expected, atol=1e-5)
