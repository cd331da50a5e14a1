"""Precision, recall, density and coverage: samples against balls around features.

A ball around each feature reaches to its k-th nearest neighbour of the same set.
Kynkäänniemi et al. 2019 (precision and recall, k = 3); Naeem et al. 2020 (density and
coverage, k = 5).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jcm.errors import JcmError

# Rows and columns of the distances that are held at a time: 64 MiB of float32.
_ROWS, _COLUMNS = 2048, 8192

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
    inside_real = _count_balls(samples, real, _radii(real, k))
    inside_samples = _count_balls(real, samples, _radii(samples, k))
    return {
        "precision": float(np.mean(inside_real > 0)),
        "recall": float(np.mean(inside_samples > 0)),
    }


def density_coverage(
    samples: Features, real: Features, k: int = DENSITY_K
) -> dict[str, float]:
    """Mean number of real balls around a sample over k; real balls with a sample.

    Raises:
      JcmError: for k features or fewer on either side.
    """
    samples, real = _centered(samples, real, k)
    radii = _radii(real, k)
    return {
        "density": float(np.mean(_count_balls(samples, real, radii)) / k),
        "coverage": float(np.mean(_nearest(real, samples, 1) < radii)),
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
    return _nearest(features, features, k + 1)  # the nearest of all is itself


def _nearest(a: Features, b: Features, k: int) -> Float[np.ndarray, " _n"]:
    """Squared distance from each of `a` to its k-th nearest of `b`."""
    found = []
    for rows, count in _blocks(a, _ROWS):
        best = jnp.full((_ROWS, k), jnp.inf)
        for columns, width in _blocks(b, _COLUMNS):
            best = _merge_nearest(best, rows, columns, width)
        found.append(np.asarray(best[:count, -1]))
    return np.concatenate(found)


def _count_balls(
    a: Features, centers: Features, radii: Float[np.ndarray, " _m"]
) -> Float[np.ndarray, " _n"]:
    """In how many balls around `centers` each of `a` lies."""
    found = []
    for rows, count in _blocks(a, _ROWS):
        total = jnp.zeros(_ROWS)
        for index, (columns, width) in enumerate(_blocks(centers, _COLUMNS)):
            part = radii[index * _COLUMNS : index * _COLUMNS + width]
            # Below every square, so that nothing lies in the padding's balls.
            padded = np.full(_COLUMNS, -1, np.float32)
            padded[:width] = part
            total = total + _in_balls(rows, columns, padded)
        found.append(np.asarray(total[:count]))
    return np.concatenate(found)


def _blocks(features: Features, size: int):
    """Equal blocks, the last one filled up with zeros, and how many of each count."""
    for start in range(0, len(features), size):
        block = np.asarray(features[start : start + size], np.float32)
        padding = ((0, size - len(block)), (0, 0))
        yield np.pad(block, padding), len(block)


def _squares(a: Array, b: Array) -> Array:
    """Squared distances; float32 throughout, also where matrices have less."""
    product = jnp.matmul(a, b.T, precision="highest")
    return jnp.maximum(
        jnp.sum(a * a, axis=1)[:, None] + jnp.sum(b * b, axis=1) - 2 * product, 0
    )


@functools.partial(jax.jit, donate_argnums=0)
def _merge_nearest(
    best: Array, rows: Array, columns: Array, width: Int[Array, ""]
) -> Array:
    squares = _squares(rows, columns)
    squares = jnp.where(jnp.arange(len(columns)) < width, squares, jnp.inf)
    smallest = -jax.lax.top_k(-squares, best.shape[1])[0]
    return -jax.lax.top_k(-jnp.concatenate([best, smallest], axis=1), best.shape[1])[0]


@jax.jit
def _in_balls(rows: Array, centers: Array, radii: Array) -> Array:
    return jnp.sum(_squares(rows, centers) <= radii, axis=1).astype(jnp.float32)
