"""FIR resampling of images (Zhang 2019; StyleGAN2; NCSN++).

The filters are separable and short, so each one is computed as a sum of shifted slices.
A depthwise convolution gives the same numbers and takes tens of times longer on a CPU.
Borders are padded with zeros, as in the original, which darkens the edges.
"""

import functools
import operator
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jcm.networks import primitives


def upsample(
    x: Float[Array, "b h w c"], kernel: Sequence[float]
) -> Float[Array, "b 2*h 2*w c"]:
    """Doubles height and width by zero insertion and the filter times 4."""
    return _resample(
        x,
        taps=_taps(kernel, gain=2),
        before=_pads(len(kernel) - 2)[0] + 1,
        up=2,
        down=1,
        size=(2 * x.shape[1], 2 * x.shape[2]),
    )


def downsample(
    x: Float[Array, "b h w c"], kernel: Sequence[float]
) -> Float[Array, "b h//2 w//2 c"]:
    """Halves height and width by the filter and every second pixel."""
    pads = _pads(len(kernel) - 2)
    return _resample(
        x,
        taps=_taps(kernel),
        before=pads[0],
        up=1,
        down=2,
        size=tuple((n + sum(pads) - len(kernel)) // 2 + 1 for n in x.shape[1:3]),
    )


def conv_downsample(
    x: Float[Array, "b h w c"], weight: Float[Array, "k k c d"], kernel: Sequence[float]
) -> Float[Array, "b h//2 w//2 d"]:
    """Applies the filter and then an unpadded convolution with stride 2."""
    x = _filter(x, kernel, _pads(len(kernel) - 2 + weight.shape[0] - 1))
    return lax.conv_general_dilated(
        x, weight, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def conv_upsample(
    x: Float[Array, "b h w c"], weight: Float[Array, "k k c d"], kernel: Sequence[float]
) -> Float[Array, "b 2*h 2*w d"]:
    """Applies a transposed convolution with stride 2 and then the filter times 4."""
    width = weight.shape[0]
    x = lax.conv_general_dilated(
        x,
        weight,
        (1, 1),
        [(width - 1, width - 1)] * 2,
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    before, after = _pads(len(kernel) - 2 - (width - 1))
    return _filter(x, kernel, (before + 1, after + 1), gain=2)


def _pads(total: int) -> tuple[int, int]:
    """Returns the zeros before and after an axis; an odd one goes before."""
    return (total + 1) // 2, total // 2


def _taps(kernel: Sequence[float], gain: float = 1) -> tuple[float, ...]:
    """Returns the flipped kernel, scaled to the sum `gain`."""
    return tuple(np.asarray(kernel, np.float64)[::-1] * (gain / np.sum(kernel)))


def _filter(
    x: Array, kernel: Sequence[float], pads: tuple[int, int], gain: float = 1
) -> Array:
    """Convolves padded images with the kernel along both axes."""
    size = tuple(n + sum(pads) - len(kernel) + 1 for n in x.shape[1:3])
    taps = _taps(kernel, gain)
    return _resample(x, taps=taps, before=pads[0], up=1, down=1, size=size)


def _compute(
    x: Float[Array, "b h w c"],
    *,
    taps: tuple[float, ...],
    before: int,
    up: int,
    down: int,
    size: tuple[int, int],
) -> Float[Array, "b p q c"]:
    """Resamples along both axes: y[j] = sum_i x[i] taps[before + i up - j down].

    Args:
      x: the images.
      taps: the filter.
      before: zeros before the first pixel.
      up: pixels are this far apart before the filter, with zeros between them.
      down: every `down`-th result is kept; `up` or `down` is 1.
      size: results along both axes.
    """
    for axis, count in zip((1, 2), size, strict=True):
        phases = []
        for phase in range(up):
            # y[up m + phase] is a sum of x[down m + offset], with these taps.
            offsets = {
                (place - before + phase) // up: tap
                for place, tap in enumerate(taps)
                if (place - before + phase) % up == 0
            }
            phases.append(
                _correlate(x, offsets or {0: 0.0}, axis, down, -(-count // up))
            )
        shape = (*x.shape[:axis], up * phases[0].shape[axis], *x.shape[axis + 1 :])
        x = jnp.stack(phases, axis + 1).reshape(shape)
        x = lax.slice_in_dim(x, 0, count, axis=axis)
    return x


def _correlate(
    x: Array, offsets: dict[int, float], axis: int, stride: int, count: int
) -> Array:
    """Returns the sums of tap * x[stride m + offset] for m < count along an axis."""
    first, last = min(offsets), max(offsets)
    span = (count - 1) * stride + 1
    # A negative number of zeros cuts pixels that no result reads.
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (-first, last + span - x.shape[axis], 0)
    x = lax.pad(x, jnp.zeros((), x.dtype), config)
    terms = [
        lax.slice_in_dim(x, at - first, at - first + span, stride, axis)
        * jnp.asarray(tap, x.dtype)
        for at, tap in offsets.items()
    ]
    return functools.reduce(operator.add, terms)


def _transpose(
    gradient: Array,
    shape: tuple[int, ...],
    *,
    taps: tuple[float, ...],
    before: int,
    up: int,
    down: int,
    size: tuple[int, int],
) -> Array:
    """Returns the gradient of x: the same operation with `up` and `down` exchanged."""
    del size
    return _resample(
        gradient,
        taps=taps[::-1],
        before=len(taps) - 1 - before,
        up=down,
        down=up,
        size=shape[1:3],
    )


_resample = primitives.linear(
    "fir_resample",
    _compute,
    _transpose,
    settings=("taps", "before", "up", "down", "size"),
)
