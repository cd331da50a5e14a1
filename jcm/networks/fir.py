"""FIR resampling of images (Zhang 2019; StyleGAN2; NCSN++).

The filters are separable and short, so each one is computed as a sum of shifted slices.
A depthwise convolution gives the same numbers and takes tens of times longer on a CPU.
Borders are padded with zeros, as in the original, which darkens the edges.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def upsample(
    x: Float[Array, "b h w c"], kernel: Sequence[float]
) -> Float[Array, "b 2*h 2*w c"]:
    """Doubles height and width by zero insertion and the filter times 4."""
    pads = _pads(len(kernel) - 2)
    for axis in (1, 2):
        x = _filter(_insert_zeros(x, axis), kernel, axis, pads, stride=1, gain=2)
    return x


def downsample(
    x: Float[Array, "b h w c"], kernel: Sequence[float]
) -> Float[Array, "b h//2 w//2 c"]:
    """Halves height and width by the filter and every second pixel."""
    for axis in (1, 2):
        x = _filter(x, kernel, axis, _pads(len(kernel) - 2), stride=2)
    return x


def conv_downsample(
    x: Float[Array, "b h w c"], weight: Float[Array, "k k c d"], kernel: Sequence[float]
) -> Float[Array, "b h//2 w//2 d"]:
    """Applies the filter and then an unpadded convolution with stride 2."""
    pads = _pads(len(kernel) - 2 + weight.shape[0] - 1)
    for axis in (1, 2):
        x = _filter(x, kernel, axis, pads, stride=1)
    return lax.conv_general_dilated(
        x, weight, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def conv_upsample(
    x: Float[Array, "b h w c"], weight: Float[Array, "k k c d"], kernel: Sequence[float]
) -> Float[Array, "b 2*h 2*w d"]:
    """Applies a transposed convolution with stride 2 and then the filter times 4."""
    width = weight.shape[0]
    for axis in (1, 2):
        # The outermost zeros are cut, since the convolution pads by itself.
        x = _insert_zeros(x, axis)[(slice(None),) * axis + (slice(1, -1),)]
    x = lax.conv_general_dilated(
        x,
        weight,
        (1, 1),
        [(width - 1, width - 1)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    before, after = _pads(len(kernel) - 2 - (width - 1))
    for axis in (1, 2):
        x = _filter(x, kernel, axis, (before + 1, after + 1), stride=1, gain=2)
    return x


def _pads(total: int) -> tuple[int, int]:
    """Returns the zeros before and after an axis; an odd one goes before."""
    return (total + 1) // 2, total // 2


def _insert_zeros(x: Array, axis: int) -> Array:
    """Inserts a zero before every element along `axis` and one after the last."""
    config = [(1, 1, 1) if a == axis else (0, 0, 0) for a in range(x.ndim)]
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _filter(
    x: Array,
    kernel: Sequence[float],
    axis: int,
    pads: tuple[int, int],
    *,
    stride: int,
    gain: float = 1,
) -> Array:
    """Convolves along one axis with the flipped kernel, scaled to the sum `gain`."""
    taps = np.asarray(kernel, np.float64)[::-1] * (gain / np.sum(kernel))
    config = [(*pads, 0) if a == axis else (0, 0, 0) for a in range(x.ndim)]
    x = lax.pad(x, jnp.zeros((), x.dtype), config)
    size = x.shape[axis] - len(taps) + 1
    return sum(
        tap.astype(x.dtype)
        * lax.slice_in_dim(x, start, start + size, stride=stride, axis=axis)
        for start, tap in enumerate(taps)
    )
