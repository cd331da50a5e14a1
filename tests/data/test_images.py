"""Tests of the conversion between pixels and floats."""

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jcm.data.images import to_float, to_uint8
from jcm.runtime.errors import JcmError


@pytest.mark.parametrize("xp", [np, jnp])
def test_every_pixel_value_survives_a_round_trip(xp):
    pixels = xp.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    numbers = to_float(pixels)
    assert numbers.dtype == np.float32
    assert numbers.min() == -1
    assert numbers.max() == 1
    np.testing.assert_array_equal(to_uint8(numbers), pixels)


@pytest.mark.parametrize("xp", [np, jnp])
def test_floats_are_clipped_and_rounded(xp):
    step = 2 / 255
    numbers = [-3, -1, -1 + 0.4 * step, -1 + 0.6 * step, 1 - 0.6 * step, 1.0, 7]
    pixels = to_uint8(xp.asarray(numbers, np.float32).reshape(1, 1, 7, 1))
    np.testing.assert_array_equal(pixels.ravel(), [0, 0, 0, 1, 254, 255, 255])


def test_the_other_type_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(
        JcmError, match=r"to_uint8 takes floats in \[-1, 1\], not uint8"
    ):
        to_uint8(np.zeros((1, 1, 1, 1), np.uint8))
    with pytest.raises(JcmError, match="to_float takes uint8 images, not float32"):
        to_float(np.zeros((1, 1, 1, 1), np.float32))
