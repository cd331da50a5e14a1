"""Precision, recall, density and coverage.

They count which features lie in balls around the features of the other set. Each ball
reaches to the k-th nearest neighbour in its own set. Precision and recall are from
Kynkäänniemi et al. 2019 (k = 3), density and coverage from Naeem et al. 2020 (k = 5).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jcm.runtime.errors import JcmError

# Features in a block. The distances between two blocks take 16 MiB of float32.
_BLOCK = 2048
# Rows or columns in a slice; see `_smallest`.
_SLICE = 32

# The neighbour that the balls of each pair of scores reach to.
PRECISION_K, DENSITY_K = 3, 5

Features = Float[np.ndarray, "_n d"]
"""Features of images, one row each."""


class _Block(NamedTuple):
    """A block of features on the device; all blocks of a set have the same size.

    Attributes:
      features: the features, padded with zeros.
      squares: their squared lengths, padded with infinity, so that padding is far from
        everything.
    """

    features: Float[Array, "b d"]
    squares: Float[Array, " b"]


class _Balls(NamedTuple):
    """Counts for two sets of features, called rows and columns.

    Attributes:
      around_rows: for each row, the number of column balls that it lies in.
      around_columns: for each column, the number of row balls that it lies in.
      inside_columns: for each column, the number of rows that lie in its ball.
    """

    around_rows: Int[np.ndarray | Array, " _n"]
    around_columns: Int[np.ndarray | Array, " _m"]
    inside_columns: Int[np.ndarray | Array, " _m"]


def precision_recall(
    samples: Features, real: Features, k: int = PRECISION_K
) -> dict[str, float]:
    """Computes precision and recall.

    Precision is the share of samples that lie in a ball around a real image; recall is
    the share of real images that lie in a ball around a sample.

    Args:
      samples: features of the samples.
      real: features of the real images.
      k: the neighbour that a ball reaches to.

    Raises:
      JcmError: if one side has k features or fewer.
    """
    a, b = _sets(samples, real, k)
    balls = _count_balls(a, b, _radii(a, k), _radii(b, k))
    return {
        "precision": float(np.mean(balls.around_rows[: len(samples)] > 0)),
        "recall": float(np.mean(balls.around_columns[: len(real)] > 0)),
    }


def density_coverage(
    samples: Features, real: Features, k: int = DENSITY_K
) -> dict[str, float]:
    """Computes density and coverage.

    Density is the mean number of real balls that a sample lies in, divided by k;
    coverage is the share of real balls that contain a sample.

    Args:
      samples: features of the samples.
      real: features of the real images.
      k: the neighbour that a ball reaches to.

    Raises:
      JcmError: if one side has k features or fewer.
    """
    a, b = _sets(samples, real, k)
    no_radii = [np.zeros(len(block.squares), np.float32) for block in a]
    balls = _count_balls(a, b, no_radii, _radii(b, k))
    return {
        "density": float(np.mean(balls.around_rows[: len(samples)]) / k),
        "coverage": float(np.mean(balls.inside_columns[: len(real)] > 0)),
    }


def _sets(
    samples: Features, real: Features, k: int
) -> tuple[list[_Block], list[_Block]]:
    """Centres both sets on the real mean, so that distances lose fewer digits."""
    if min(len(samples), len(real)) <= k:
        raise JcmError(
            f"{len(samples)} samples and {len(real)} real images are too few: more than"
            f" {k} on each side are needed, raise config.eval.num_images"
        )
    center = np.mean(real, axis=0)
    return _blocks(samples, center), _blocks(real, center)


def _blocks(features: Features, center: Float[np.ndarray, " d"]) -> list[_Block]:
    blocks: list[_Block] = []
    # Blocks of equal size, so that the last one needs little padding.
    size = -(-len(features) // -(-len(features) // _BLOCK))
    for start in range(0, len(features), size):
        part = np.asarray(features[start : start + size] - center, np.float32)
        padding = size - len(part)
        squares = np.pad(
            np.sum(part * part, axis=1), (0, padding), constant_values=np.inf
        )
        padded = np.pad(part, ((0, padding), (0, 0)))
        blocks.append(_Block(jnp.asarray(padded), jnp.asarray(squares)))
    return blocks


def _radii(blocks: Sequence[_Block], k: int) -> list[Float[Array, " b"]]:
    """Returns the squared distance of each feature to its k-th neighbour, by block."""
    # One more than k, since the nearest of all is the feature itself.
    best = [jnp.full((len(block.squares), k + 1), jnp.inf) for block in blocks]
    for i, rows in enumerate(blocks):
        best[i] = _nearest_within(best[i], rows)
        # Each pair of blocks is visited once, since its distances count for both.
        for j in range(i + 1, len(blocks)):
            best[i], best[j] = _nearest_between(best[i], best[j], rows, blocks[j])
    # No square is as small as -1, so nothing lies in the balls of padding.
    return [
        jnp.where(jnp.isinf(block.squares), -1, nearest[:, -1])
        for block, nearest in zip(blocks, best, strict=True)
    ]


def _count_balls(
    rows: Sequence[_Block],
    columns: Sequence[_Block],
    row_radii: Sequence[Float[np.ndarray | Array, " _b"]],
    column_radii: Sequence[Float[np.ndarray | Array, " _c"]],
) -> _Balls:
    """Counts balls around two sets of features.

    Radii are squared, and a feature on the edge of a ball lies in it.
    """
    around_rows, around_columns, inside_columns = (
        [np.zeros(len(block.squares), np.int64) for block in of]
        for of in (rows, columns, columns)
    )
    for i, row_block in enumerate(rows):
        for j, column_block in enumerate(columns):
            found = _count_in_block(
                row_block, column_block, row_radii[i], column_radii[j]
            )
            around_rows[i] += found.around_rows
            around_columns[j] += found.around_columns
            inside_columns[j] += found.inside_columns
    return _Balls(*map(np.concatenate, (around_rows, around_columns, inside_columns)))


@jax.jit
def _nearest_within(best: Array, block: _Block) -> Array:
    return _merge(best, _distances(block, block), axis=1)


@jax.jit
def _nearest_between(
    best_of_rows: Array, best_of_columns: Array, rows: _Block, columns: _Block
) -> tuple[Array, Array]:
    found = _distances(rows, columns)
    return _merge(best_of_rows, found, axis=1), _merge(best_of_columns, found, axis=0)


def _merge(best: Array, found: Array, axis: int) -> Array:
    """Returns the smallest distances along `axis` and of each row of `best`, in order.

    Args:
      best: the smallest distances so far, (b, k + 1).
      found: more distances, (b, c) for axis 1 and (c, b) for axis 0.
      axis: the axis of `found` that is searched.
    """
    count = best.shape[1]
    least = _smallest(found, count, axis)
    return -jax.lax.top_k(-jnp.concatenate([best, least], axis=1), count)[0]


def _smallest(found: Array, count: int, axis: int) -> Array:
    """Returns the `count` smallest elements along an axis of a matrix, (n, count)."""

    def sort(found: Array) -> Array:
        found = found if axis == 1 else found.T
        return -jax.lax.top_k(-found, count)[0]

    return jax.lax.platform_dependent(
        found, cpu=lambda found: sort(_few(found, count, axis)), default=sort
    )


def _few(found: Array, count: int, axis: int) -> Array:
    """Returns a part of the elements that has the `count` smallest along an axis.

    Slices of the matrix are sorted into `count` others element by element. These keep
    the smallest ones of each place in a slice. On a CPU this makes the search several
    times faster than `jax.lax.top_k` of the whole matrix.
    """

    def insert(i: Array, kept: list[Array]) -> list[Array]:
        part = jax.lax.dynamic_slice_in_dim(found, i * _SLICE, _SLICE, axis)
        sorted_in = []
        for least in kept:
            sorted_in.append(jnp.minimum(least, part))
            part = jnp.maximum(least, part)
        return sorted_in

    slices = found.shape[axis] // _SLICE
    if slices <= count:
        return found
    first = jax.lax.slice_in_dim(found, 0, _SLICE, axis=axis)
    empty = jnp.full_like(first, jnp.inf)
    kept = jax.lax.fori_loop(0, slices, insert, [empty] * count)
    rest = jax.lax.slice_in_dim(found, slices * _SLICE, None, axis=axis)
    return jnp.concatenate([*kept, rest], axis)


@jax.jit
def _count_in_block(
    rows: _Block, columns: _Block, row_radii: Array, column_radii: Array
) -> _Balls:
    found = _distances(rows, columns)
    in_rows, in_columns = found <= row_radii[:, None], found <= column_radii
    return _Balls(
        around_rows=jnp.sum(in_columns, axis=1, dtype=jnp.int32),
        around_columns=jnp.sum(in_rows, axis=0, dtype=jnp.int32),
        inside_columns=jnp.sum(in_columns, axis=0, dtype=jnp.int32),
    )


def _distances(rows: _Block, columns: _Block) -> Array:
    """Returns squared distances, in full float32 on every device."""
    product = jnp.matmul(rows.features, columns.features.T, precision="highest")
    return jnp.maximum(rows.squares[:, None] + columns.squares - 2 * product, 0)
