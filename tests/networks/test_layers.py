"""Tests of group normalisation, with what is fused into it, in plain steps."""

import jax
import numpy as np
import pytest
from flax import nnx

from jcm.networks import layers


def _arrays(*shapes):
    keys = jax.random.split(jax.random.key(3), len(shapes))
    return [jax.random.normal(*each) for each in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("swish", [False, True])
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 1e-2)]
)
def test_group_norm_is_the_plain_computation(moved, modulated, swish, dtype, tolerance):
    x, offset, times, plus, scale, bias = _arrays(
        (3, 4, 5, 12), (3, 12), (3, 12), (3, 12), (12,), (12,)
    )
    x, offset = x.astype(dtype), 3 * offset.astype(dtype)
    norm = layers.GroupNorm(12, groups=4, epsilon=1e-5, dtype=dtype, rngs=nnx.Rngs(0))
    norm.scale[...], norm.bias[...] = scale, bias
    found = norm(
        x,
        offset=offset if moved else None,
        modulation=(times, plus) if modulated else None,
        swish=swish,
    )
    assert found.dtype == dtype

    expected = np.asarray(x, np.float64)
    if moved:
        expected += np.asarray(offset, np.float64)[:, None, None]
    grouped = expected.reshape(3, 20, 4, 3)
    mean = grouped.mean((1, 3), keepdims=True)
    deviation = np.sqrt(grouped.var((1, 3), keepdims=True) + 1e-5)
    expected = ((grouped - mean) / deviation).reshape(x.shape)
    expected = expected * scale + bias
    if modulated:
        expected = expected * (1 + times)[:, None, None] + plus[:, None, None]
    if swish:
        expected = expected / (1 + np.exp(-expected))
    np.testing.assert_allclose(
        np.asarray(found, np.float64), expected, rtol=tolerance, atol=tolerance
    )


def test_group_norm_of_flax_gives_the_same():
    (x,) = _arrays((2, 4, 4, 8))
    plain = nnx.GroupNorm(8, num_groups=2, epsilon=1e-6, rngs=nnx.Rngs(0))
    norm = layers.GroupNorm(
        8, groups=2, epsilon=1e-6, dtype="float32", rngs=nnx.Rngs(0)
    )
    np.testing.assert_allclose(norm(x), plain(x), rtol=1e-5, atol=1e-5)
