"""3×3 convolutions by Winograd's algorithm on CPUs (Lavin & Gray 2016).

A tile of 4×4 outputs takes 36 multiplications per pair of channels instead of 144: the
tile of 6×6 inputs and the filter are transformed, multiplied point by point, which is a
matrix product over the channels, and transformed back. XLA has no such algorithm for
CPUs. Other platforms get XLA's convolution, since the libraries of GPUs choose their
algorithms themselves and the units of TPUs multiply faster than they add.
"""

import functools
import math
import operator
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jcm.networks import primitives

_OUT, _TAPS = 4, 3
_TILE = _OUT + _TAPS - 1
# With these points the rounding error is twice that of XLA's convolution; with the
# usual 0, ±1 and ±2 it is four times. The last point is infinity.
_POINTS = (0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the transforms of inputs, filters and outputs (Toom-Cook, transposed).

    For a tile d of 6 inputs and 3 taps g, `outputs @ ((filters @ g) * (inputs @ d))`
    are the 4 values of their correlation.
    """
    points = np.asarray(_POINTS)
    others = [np.delete(points, i) for i in range(len(points))]
    inputs = np.zeros((_TILE, _TILE))
    for row, roots in zip(inputs, [*others, points], strict=True):
        row[: len(roots) + 1] = np.poly(roots)[::-1]
    scale = [np.prod(point - rest) for point, rest in zip(points, others, strict=True)]
    filters = np.vander(points, _TAPS, increasing=True) / np.stack(scale)[:, None]
    filters = np.concatenate([filters, np.eye(_TAPS)[-1:]])
    outputs = np.vander(points, _OUT, increasing=True).T
    outputs = np.concatenate([outputs, np.eye(_OUT)[:, -1:]], axis=1)
    return inputs, filters, outputs


_INPUTS, _FILTERS, _OUTPUTS = _matrices()


def convolve(
    x: Float[Array, "b h w c"], weight: Float[Array, "3 3 c d"]
) -> Float[Array, "b h w d"]:
    """Convolves images with a 3×3 filter; borders are padded with zeros.

    Any derivative can be taken. Only float32 uses Winograd's algorithm: it would lose
    digits of a shorter type, and fractions of integers.
    """
    if x.dtype != jnp.float32 or weight.dtype != jnp.float32:
        return _xla_convolve(x, weight)
    return _convolve_3x3(x, weight)


def pays_off(x: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Returns whether a CPU computes a convolution faster by Winograd's algorithm.

    Measured on a core of an AMD EPYC, the time is 0.4 to 0.6 of that of XLA. With fewer
    channels or pixels the transforms take as long as they save.

    Args:
      x: shape of the images: (b, h, w, c).
      weight: shape of the filter: (k, k, c, d).
    """
    pixels = x[1] * x[2]
    return weight[:2] == (3, 3) and pixels >= 128 and min(weight[2:]) >= 32


def _xla_convolve(x: Array, weight: Array) -> Array:
    """Returns the same by XLA's convolution."""
    return lax.conv_general_dilated(
        x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _xla_correlate(x: Array, y: Array) -> Array:
    """Returns the correlation of inputs and gradients of outputs: (3, 3, c, d)."""
    return lax.conv_general_dilated(
        x, y, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("CHWN", "IHWO", "HWNC")
    )


def _convolve(x: Array, weight: Array) -> Array:
    batch, height, width, _ = x.shape
    products = lax.dot_general(
        _input_tiles(x), _transform_weight(weight), (((2,), (1,)), ((0,), (0,)))
    )
    tiles = -(-height // _OUT), -(-width // _OUT)
    split = products.reshape(_TILE, _TILE, batch, *tiles, weight.shape[-1])
    rows = jnp.stack(_from_points(_OUTPUTS, list(split)))
    rows = jnp.moveaxis(rows, 0, 3)  # (tile, b, th, 4, tw, d)
    outputs = jnp.stack(_from_points(_OUTPUTS, list(rows)), axis=4)
    sizes = tiles[0] * _OUT, tiles[1] * _OUT
    whole = outputs.reshape(batch, *sizes, weight.shape[-1])
    return whole[:, :height, :width]


def _correlate(x: Array, y: Array) -> Array:
    products = lax.dot_general(
        _input_tiles(x), _output_tiles(y), (((1,), (1,)), ((0,), (0,)))
    )
    transform = jnp.asarray(np.kron(_FILTERS, _FILTERS).T, x.dtype)
    filters = products.shape[1:]
    flat = transform @ products.reshape(_TILE * _TILE, math.prod(filters))
    return flat.reshape(_TAPS, _TAPS, *filters)


def _transform_weight(weight: Array) -> Array:
    """Returns the transformed filter: (36, c, d)."""
    transform = jnp.asarray(np.kron(_FILTERS, _FILTERS), weight.dtype)
    flat = transform @ weight.reshape(_TAPS * _TAPS, -1)
    return flat.reshape(_TILE * _TILE, *weight.shape[2:])


def _input_tiles(x: Array) -> Array:
    """Returns the transformed tiles of 6×6 inputs, which overlap: (36, tiles, c)."""
    batch, height, width, channels = x.shape
    down, across = -(-height // _OUT), -(-width // _OUT)
    ends = [
        (1, tiles * _OUT - size + 1)
        for tiles, size in ((down, height), (across, width))
    ]
    x = jnp.pad(x, ((0, 0), *ends, (0, 0)))
    rows = jnp.stack(_to_points(_INPUTS, _shifted(x, 1, down)))
    columns = jnp.stack(_to_points(_INPUTS, _shifted(rows, 3, across)), axis=1)
    return columns.reshape(_TILE * _TILE, batch * down * across, channels)


def _output_tiles(y: Array) -> Array:
    """Returns the tiles of 4×4 outputs by the transposed transform: (36, tiles, d)."""
    batch, height, width, channels = y.shape
    down, across = -(-height // _OUT), -(-width // _OUT)
    ends = ((0, down * _OUT - height), (0, across * _OUT - width))
    y = jnp.pad(y, ((0, 0), *ends, (0, 0)))
    y = y.reshape(batch, down, _OUT, across * _OUT, channels)
    rows = jnp.stack(_to_points(_OUTPUTS.T, list(jnp.moveaxis(y, 2, 0))))
    rows = rows.reshape(_TILE, batch, down, across, _OUT, channels)
    columns = _to_points(_OUTPUTS.T, list(jnp.moveaxis(rows, 4, 0)))
    points = jnp.stack(columns, axis=1)
    return points.reshape(_TILE * _TILE, batch * down * across, channels)


def _shifted(x: Array, axis: int, tiles: int) -> list[Array]:
    """Returns the elements 0 of the tiles along an axis, then the elements 1, ..."""
    last = (tiles - 1) * _OUT + 1
    return [
        lax.slice_in_dim(x, start, start + last, _OUT, axis) for start in range(_TILE)
    ]


def _to_points(matrix: np.ndarray, parts: list[Array]) -> list[Array]:
    """Returns `matrix @ parts`, where each row of the matrix belongs to a point.

    The rows of two opposite points differ in the signs of their odd elements alone.
    """
    rows = [_sum(matrix[0], parts)]
    for row in matrix[1:-1:2]:
        even, odd = (_sum(row[i::2], parts[i::2]) for i in (0, 1))
        rows += [even + odd, even - odd]
    return [*rows, _sum(matrix[-1], parts)]


def _from_points(matrix: np.ndarray, parts: list[Array]) -> list[Array]:
    """Returns `matrix @ parts`, where each column of the matrix belongs to a point."""
    pairs = list(zip(parts[1:-1:2], parts[2:-1:2], strict=True))
    sums = [parts[0], *(one + other for one, other in pairs), parts[-1]]
    differences = [parts[0], *(one - other for one, other in pairs), parts[-1]]
    columns = [0, *range(1, len(parts) - 1, 2), -1]
    return [
        _sum(row[columns], differences if power % 2 else sums)
        for power, row in enumerate(matrix)
    ]


def _sum(factors: np.ndarray, parts: list[Array]) -> Array:
    """Returns the sum of parts times factors; zeros cost nothing."""
    terms = [
        part if factor == 1 else part * np.asarray(factor, part.dtype)
        for factor, part in zip(factors, parts, strict=True)
        if factor
    ]
    return functools.reduce(operator.add, terms)


def _flipped(weight: Array) -> Array:
    """Returns the filter by which a gradient goes back to the inputs."""
    return jnp.swapaxes(weight[::-1, ::-1], 2, 3)


_convolve_3x3 = primitives.bilinear(
    "convolve_3x3",
    _convolve,
    _xla_convolve,
    lambda gradient, weight: convolve(gradient, _flipped(weight)),
    lambda gradient, x: _weight_gradient_3x3(x, gradient),
    by_row=True,
)
_weight_gradient_3x3: Callable[[Array, Array], Array] = primitives.bilinear(
    "weight_gradient_3x3",
    _correlate,
    _xla_correlate,
    lambda gradient, y: convolve(y, _flipped(gradient)),
    lambda gradient, x: convolve(x, gradient),
)
