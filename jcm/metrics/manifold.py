"""Precision, recall, density and coverage: samples against balls around features.

A ball around each feature reaches to its k-th nearest neighbour of the same set.
Kynkäänniemi et al. 2019 (precision and recall, k = 3); Naeem et al. 2020 (density and
coverage, k = 5).
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jcm.errors import JcmError

# Distances of so many to so many are held at a time: 64 MiB of float32.
_BLOCK = 4096

# Neighbours that make the balls of each pair of scores.
PRECISION_K, DENSITY_K = 3, 5

Features = Float[np.ndarray, "_n d"]


def precision_recall(
    samples: Features, real: Features, k: int = PRECISION_K
) -> dict[str, float]:
    """Share of samples inside of a real ball, and of real ones inside of a sample's.

    Raises:
      JcmError: for k features or fewer on either side.
    """
    samples, real = _centered(samples, real, k)
    balls = _count_balls(samples, real, _radii(samples, k), _radii(real, k))
    return {
        "precision": float(np.mean(balls.around_rows > 0)),
        "recall": float(np.mean(balls.around_columns > 0)),
    }


def density_coverage(
    samples: Features, real: Features, k: int = DENSITY_K
) -> dict[str, float]:
    """Mean number of real balls around a sample over k; real balls with a sample.

    Raises:
      JcmError: for k features or fewer on either side.
    """
    samples, real = _centered(samples, real, k)
    balls = _count_balls(samples, real, np.zeros(len(samples)), _radii(real, k))
    return {
        "density": float(np.mean(balls.around_rows) / k),
        "coverage": float(np.mean(balls.inside_columns > 0)),
    }


def _centered(samples: Features, real: Features, k: int) -> tuple[Features, Features]:
    """Both around the same origin: distances lose fewer digits there."""
    if min(len(samples), len(real)) <= k:
        raise JcmError(
            f"{len(samples)} samples and {len(real)} real images are too few for"
            f" neighbour {k} of each: raise config.eval.num_images"
        )
    center = np.mean(real, axis=0)
    return samples - center, real - center


def _radii(features: Features, k: int) -> Float[np.ndarray, " _n"]:
    """Squared distance to the k-th nearest other feature."""
    count = len(features)
    # The nearest of all is the feature itself.
    best = [jnp.full((min(_BLOCK, count), k + 1), jnp.inf)] * -(-count // _BLOCK)
    for i, rows in enumerate(_blocks(features)):
        left = count - i * _BLOCK
        best[i] = _nearest_within(best[i], rows, left)
        # Each pair of blocks once: their distances count for both.
        for j, columns in enumerate(_blocks(features, i + 1), i + 1):
            best[i], best[j] = _nearest_between(
                best[i], best[j], rows, columns, count - j * _BLOCK
            )
    return np.concatenate([block[:, -1] for block in best])[:count]


class _Balls(NamedTuple):
    """Counts of balls around features, and of features in balls.

    Attributes:
      around_rows: balls around columns that each of the rows lies in.
      around_columns: balls around rows that each of the columns lies in.
      inside_columns: rows that lie in the ball around each of the columns.
    """

    around_rows: Float[np.ndarray | Array, " _n"]
    around_columns: Float[np.ndarray | Array, " _m"]
    inside_columns: Float[np.ndarray | Array, " _m"]


def _count_balls(
    rows: Features,
    columns: Features,
    row_radii: Float[np.ndarray, " _n"],
    column_radii: Float[np.ndarray, " _m"],
) -> _Balls:
    """Balls around two sets of features; radii are squared, edges belong to balls."""
    found = _Balls(*(np.zeros(len(of)) for of in (rows, columns, columns)))
    for i, row_block in enumerate(_blocks(rows)):
        of_rows = slice(i * _BLOCK, (i + 1) * _BLOCK)
        for j, column_block in enumerate(_blocks(columns)):
            of_columns = slice(j * _BLOCK, (j + 1) * _BLOCK)
            radii = row_radii[of_rows], column_radii[of_columns]
            part = _count_in_block(
                row_block,
                column_block,
                _padded_radii(radii[0], len(row_block)),
                _padded_radii(radii[1], len(column_block)),
            )
            found.around_rows[of_rows] += part.around_rows[: len(radii[0])]
            found.around_columns[of_columns] += part.around_columns[: len(radii[1])]
            found.inside_columns[of_columns] += part.inside_columns[: len(radii[1])]
    return found


def _blocks(features: Features, first: int = 0) -> Iterator[Float[np.ndarray, "_b d"]]:
    """Equal blocks from one on, the last one filled up with zeros."""
    for start in range(first * _BLOCK, len(features), _BLOCK):
        block = np.asarray(features[start : start + _BLOCK], np.float32)
        yield np.pad(block, ((0, min(_BLOCK, len(features)) - len(block)), (0, 0)))


def _padded_radii(
    radii: Float[np.ndarray, " _n"], size: int
) -> Float[np.ndarray, " _b"]:
    """Below every square where there is no feature: nothing lies in those balls."""
    padded = np.full(size, -1, np.float32)
    padded[: len(radii)] = radii
    return padded


def _squares(a: Array, b: Array) -> Array:
    """Squared distances; float32 throughout, also where matrices have less."""
    product = jnp.matmul(a, b.T, precision="highest")
    return jnp.maximum(
        jnp.sum(a * a, axis=1)[:, None] + jnp.sum(b * b, axis=1) - 2 * product, 0
    )


@jax.jit
def _nearest_within(best: Array, rows: Array, count: Int[Array, ""]) -> Array:
    return _merge(best, _up_to(count, _squares(rows, rows)))


@jax.jit
def _nearest_between(
    best: Array, best_of_columns: Array, rows: Array, columns: Array, count: Array
) -> tuple[Array, Array]:
    squares = _squares(rows, columns)  # only columns may end in padding
    return _merge(best, _up_to(count, squares)), _merge(best_of_columns, squares.T)


def _up_to(count: Array, squares: Array) -> Array:
    return jnp.where(jnp.arange(squares.shape[1]) < count, squares, jnp.inf)


def _merge(best: Array, squares: Array) -> Array:
    """The least of both, for each row, in order."""
    count = best.shape[1]
    least = -jax.lax.top_k(-squares, count)[0]
    return -jax.lax.top_k(-jnp.concatenate([best, least], axis=1), count)[0]


@jax.jit
def _count_in_block(
    rows: Array, columns: Array, row_radii: Array, column_radii: Array
) -> _Balls:
    squares = _squares(rows, columns)
    in_rows = squares <= row_radii[:, None]
    in_columns = (squares <= column_radii) & (row_radii >= 0)[:, None]
    return _Balls(
        around_rows=jnp.sum(in_columns, axis=1, dtype=jnp.float32),
        around_columns=jnp.sum(in_rows, axis=0, dtype=jnp.float32),
        inside_columns=jnp.sum(in_columns, axis=0, dtype=jnp.float32),
    )
