"""The Fréchet distance of two sets of features, both taken as Gaussian."""

import numpy as np
from jaxtyping import Float

from jcm.errors import JcmError

Features = Float[np.ndarray, "_n d"]


def moments(
    features: Features,
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
    """Mean and covariance (n - 1 in the denominator) in float64.

    Raises:
      JcmError: for fewer than two features, or any that is not finite.
    """
    features = np.asarray(features, np.float64)
    if len(features) < 2:
        raise JcmError(
            f"{len(features)} images are too few for a covariance: make more"
        )
    if not np.isfinite(features).all():
        raise JcmError("a feature is not a finite number: no score can be given")
    return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))


def distance(a: Features, b: Features) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Heusel et al. 2017, section 2).

    The trace of the root comes from symmetric eigen-decompositions alone, which stay
    real and exact where A or B is singular.
    """
    (mean_a, cov_a), (mean_b, cov_b) = moments(a), moments(b)
    values, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    overlap = np.linalg.eigvalsh(root_a @ cov_b @ root_a)
    trace_of_root = np.sqrt(np.maximum(overlap, 0)).sum()
    trace = np.trace(cov_a) + np.trace(cov_b) - 2 * trace_of_root
    return float(np.sum((mean_a - mean_b) ** 2) + trace)
