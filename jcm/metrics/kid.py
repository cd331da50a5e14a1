"""The kernel distance between two sets of features (KID, Binkowski et al. 2018)."""

import numpy as np
from jaxtyping import Float

from jcm.runtime.errors import JcmError

MIN_IMAGES = 1000
"""Each subset has this many images of either side."""
_SUBSETS = 100
# The seed with which torch-fidelity draws its subsets, so that the numbers agree.
_SEED = 2020


def distance(
    samples: Float[np.ndarray, "n d"], real: Float[np.ndarray, "m d"]
) -> float:
    """Estimates the squared maximum mean discrepancy with kernel (x.y / d + 1)^3.

    The estimate is unbiased: it is the mean over 100 subsets of 1,000 images of each
    side. If both sides have the same distribution its mean is 0, so it is negative
    about as often as positive.

    Args:
      samples: features of the samples.
      real: features of the real images.

    Raises:
      JcmError: if one side has fewer than 1,000 features.
    """
    if min(len(samples), len(real)) < MIN_IMAGES:
        raise JcmError(
            f"kid needs at least {MIN_IMAGES} images on each side, but there are"
            f" {len(samples)} samples and {len(real)} real images: raise"
            " config.eval.num_images or drop the score"
        )
    random = np.random.RandomState(_SEED)
    estimates = []
    for _ in range(_SUBSETS):
        a, b = (
            features[random.choice(len(features), MIN_IMAGES, replace=False)]
            for features in (samples, real)
        )
        estimates.append(_discrepancy(a, b))
    return float(np.mean(estimates))


def _discrepancy(a: np.ndarray, b: np.ndarray) -> float:
    n = len(a)
    within = sum(
        (kernel.sum(dtype=np.float64) - np.trace(kernel, dtype=np.float64))
        / (n * (n - 1))
        for kernel in (_kernel(a, a), _kernel(b, b))
    )
    return within - 2 * _kernel(a, b).mean(dtype=np.float64)


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3
