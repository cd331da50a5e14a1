"""FIR resampling of images (Zhang 2019; StyleGAN2; NCSN++).

Each filter is separable and short, so it is written as a sum of shifted slices. A
depthwise convolution says the same, and on a CPU costs tens of times more.
Borders are zero-padded, as in the original: constants are not kept at the edges.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def upsample(
    x: Float[Array, "b h w c"], kernel: Sequence[float]
) -> Float[Array, "b 2*h 2*w c"]:
    """Doubles height and width: zero insertion, then the filter times 4."""
    pads = _pads(len(kernel) - 2)
    for axis in (1, 2):
        x = _filter(_insert_zeros(x, axis), kernel, axis, pads, stride=1, gain=2)
    return x


def downsample(
    x: Float[Array, "b h w c"], kernel: Sequence[float]
) -> Float[Array, "b h//2 w//2 c"]:
    """Halves height and width: the filter, then every second pixel."""
    for axis in (1, 2):
        x = _filter(x, kernel, axis, _pads(len(kernel) - 2), stride=2)
    return x


def conv_downsample(
    x: Float[Array, "b h w c"], weight: Float[Array, "k k c d"], kernel: Sequence[float]
) -> Float[Array, "b h//2 w//2 d"]:
    """The filter, then a strided convolution without padding of its own."""
    pads = _pads(len(kernel) - 2 + weight.shape[0] - 1)
    for axis in (1, 2):
        x = _filter(x, kernel, axis, pads, stride=1)
    return lax.conv_general_dilated(
        x, weight, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def conv_upsample(
    x: Float[Array, "b h w c"], weight: Float[Array, "k k c d"], kernel: Sequence[float]
) -> Float[Array, "b 2*h 2*w d"]:
    """A strided transposed convolution, then the filter times 4."""
    width = weight.shape[0]
    for axis in (1, 2):
        x = _insert_zeros(x, axis)[
            (slice(None),) * axis + (slice(1, -1),)
        ]  # no zeros outside: the convolution pads
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
    """Zeros before and after an axis; the odd one goes before."""
    return (total + 1) // 2, total // 2


def _insert_zeros(x: Array, axis: int) -> Array:
    """A zero before every element along `axis`, and one after the last."""
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
    """True convolution (flipped kernel) along one axis, of unit sum times gain."""
    taps = np.asarray(kernel, np.float64)[::-1] * (gain / np.sum(kernel))
    config = [(*pads, 0) if a == axis else (0, 0, 0) for a in range(x.ndim)]
    x = lax.pad(x, jnp.zeros((), x.dtype), config)
    size = x.shape[axis] - len(taps) + 1
    return sum(
        tap.astype(x.dtype)
        * lax.slice_in_dim(x, start, start + size, stride=stride, axis=axis)
        for start, tap in enumerate(taps)
    )
