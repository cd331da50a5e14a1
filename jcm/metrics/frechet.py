"""The Fréchet distance of two sets of features, both taken as Gaussian."""

import dataclasses

import numpy as np
from jaxtyping import Float

from jcm.runtime.errors import JcmError

Features = Float[np.ndarray, "_n d"]


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and covariance of features, in float64.

    Attributes:
      mean: (d,).
      cov: (d, d), with n - 1 in the denominator.
      count: n; 0 where a published file does not tell.
    """

    mean: Float[np.ndarray, " d"]
    cov: Float[np.ndarray, "d d"]
    count: int


class MomentSum:
    """Moments of features that arrive batch by batch.

    In float64 nothing is lost by subtracting the square of the mean at the end.

    Attributes:
      sums: their number, sum and sum of outer products so far; those of several
        processes may be added up.
    """

    def __init__(self, size: int):
        """Begins for features of `size` numbers."""
        self.sums = (np.zeros(()), np.zeros(size), np.zeros((size, size)))

    def add(self, features: Features) -> None:
        """Counts a batch in."""
        features = np.asarray(features, np.float64)
        batch = (len(features), features.sum(axis=0), features.T @ features)
        self.sums = tuple(np.add(a, b) for a, b in zip(self.sums, batch, strict=True))

    def moments(self) -> Moments:
        """Of everything so far.

        Raises:
          JcmError: for fewer than two features, or one that is not a finite number.
        """
        count, total, squares = self.sums
        if not np.isfinite(squares).all():
            raise JcmError("a feature is not a finite number: no score can be given")
        if count < 2:
            raise JcmError(
                f"{count:.0f} images are too few for a covariance: make more"
            )
        mean = total / count
        cov = (squares - count * np.outer(mean, mean)) / (count - 1)
        return Moments(mean, cov, int(count))


def moments(features: Features) -> Moments:
    """Of one set; errors as of `MomentSum`."""
    total = MomentSum(features.shape[1])
    total.add(features)
    return total.moments()


def distance(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Heusel et al. 2017, section 2).

    The trace is the sum of the singular values of A^(1/2) B^(1/2): real and exact also
    where A or B is singular.

    Raises:
      JcmError: for moments of different features.
    """
    if a.mean.shape != b.mean.shape:
        raise JcmError(
            f"features of {len(a.mean)} and of {len(b.mean)} numbers cannot be"
            " compared: the reference is of another network"
        )
    overlap = np.linalg.svd(_root(a.cov) @ _root(b.cov), compute_uv=False)
    trace = np.trace(a.cov) + np.trace(b.cov) - 2 * overlap.sum()
    return float(np.sum((a.mean - b.mean) ** 2) + trace)


def _root(cov: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """The symmetric square root; what is rounding beside 0 counts as 0.

    Roots of rounding errors would add up where most eigenvalues are 0, as they are
    with fewer images than numbers.
    """
    values, vectors = np.linalg.eigh(cov)
    least = values[-1] * len(values) * np.finfo(np.float64).eps
    root = np.sqrt(np.where(values > least, values, 0))
    return (vectors * root) @ vectors.T
