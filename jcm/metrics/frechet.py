"""The Fréchet distance between two sets of features, both taken as Gaussian."""

import dataclasses

import numpy as np
from jaxtyping import Float

from jcm.runtime.errors import JcmError

Features = Float[np.ndarray, "_n d"]
"""Features of images, one row each."""


# Moments may differ by this share from what float64 gives.
_ROUNDING = 1e-4


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and covariance of features, in float64.

    Attributes:
      mean: the mean, (d,).
      cov: the covariance, (d, d), with n - 1 in the denominator.
      count: the number of images n; 0 if a published file does not state it.
    """

    mean: Float[np.ndarray, " d"]
    cov: Float[np.ndarray, "d d"]
    count: int

    def fault(self) -> str:
        """Returns why these can be the moments of no features; "" if they can be.

        Rounding of float32 is allowed.
        """
        variances = np.diagonal(self.cov)
        if not (np.isfinite(self.mean).all() and np.isfinite(self.cov).all()):
            return "they are not finite"
        if self.count < 0:
            return f"they are of {self.count} images"
        if not variances.size:
            return "they are empty"
        # The variance of a constant feature may be a little below 0.
        most = _ROUNDING * abs(variances.max())
        if variances.min() < -most:
            return "a variance is negative"
        if np.abs(self.cov - self.cov.T).max() > most:
            return "the covariance is not symmetric"
        # The inequality of Cauchy and Schwarz.
        deviations = np.sqrt(np.maximum(variances, 0))
        if (np.abs(self.cov) - np.outer(deviations, deviations)).max() > most:
            return "a covariance is larger than its variances allow"
        return ""


class MomentSum:
    """Accumulates the moments of features that arrive batch by batch.

    The sums are in float64, so that subtracting the square of the mean at the end loses
    no precision that matters.

    Attributes:
      sums: number, sum and sum of outer products of the features so far. Those of
        several processes may be added up.
    """

    def __init__(self, size: int):
        """Starts with no features; `size` is the length d of a feature."""
        self.sums = (np.zeros(()), np.zeros(size), np.zeros((size, size)))

    def add(self, features: Features) -> None:
        """Adds a batch of features (n, d)."""
        features = np.asarray(features, np.float64)
        batch = (len(features), features.sum(axis=0), features.T @ features)
        self.sums = tuple(np.add(a, b) for a, b in zip(self.sums, batch, strict=True))

    def moments(self) -> Moments:
        """Returns the moments of all features so far.

        Raises:
          JcmError: if there are fewer than two features, or one is not finite.
        """
        count, total, squares = self.sums
        if not np.isfinite(squares).all():
            raise JcmError(
                "a feature is not a finite number: check the weights and the images"
            )
        if count < 2:
            raise JcmError(
                f"{count:.0f} images are too few for a covariance: use two or more"
            )
        mean = total / count
        cov = (squares - count * np.outer(mean, mean)) / (count - 1)
        return Moments(mean, cov, int(count))


def moments(features: Features) -> Moments:
    """Returns the moments of one set of features; raises as `MomentSum.moments`."""
    total = MomentSum(features.shape[1])
    total.add(features)
    return total.moments()


def distance(a: Moments, b: Moments) -> float:
    """Computes |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)).

    This is the distance of Heusel et al. 2017, section 2. The trace of (A B)^(1/2) is
    computed as the sum of the singular values of A^(1/2) B^(1/2), which is real and
    accurate even if A or B is singular.

    Raises:
      JcmError: if the features have different lengths.
    """
    if a.mean.shape != b.mean.shape:
        raise JcmError(
            f"features of {len(a.mean)} and of {len(b.mean)} numbers cannot be"
            " compared: use a reference of the same network"
        )
    overlap = np.linalg.svd(_root(a.cov) @ _root(b.cov), compute_uv=False)
    trace = np.trace(a.cov) + np.trace(b.cov) - 2 * overlap.sum()
    return float(np.sum((a.mean - b.mean) ** 2) + trace)


def _root(cov: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """Returns the symmetric square root, with tiny eigenvalues taken as 0.

    With fewer images than numbers in a feature, most eigenvalues are 0 up to rounding,
    and the roots of these errors would add up.
    """
    values, vectors = np.linalg.eigh(cov)
    least = values[-1] * len(values) * np.finfo(np.float64).eps
    root = np.sqrt(np.where(values > least, values, 0))
    return (vectors * root) @ vectors.T
