"""The Inception Score (Salimans et al. 2016, section 4)."""

import numpy as np
from jaxtyping import Float
from scipy import special

from jcm.runtime.errors import JcmError

MIN_IMAGES = _SPLITS = 10
"""The score is the mean over this many parts, each with at least one image."""


def score(logits: Float[np.ndarray, "n c"]) -> float:
    """Computes exp(E KL(p(y | x) || p(y))), the mean over ten equal parts in order.

    It is high if each image is recognised clearly and the images vary. Each part has
    its own p(y).

    Args:
      logits: logits of the Inception network without bias.

    Raises:
      JcmError: if there are fewer than ten images.
    """
    if len(logits) < MIN_IMAGES:
        raise JcmError(
            f"inception_score needs at least {MIN_IMAGES} images, but there are"
            f" {len(logits)}: raise config.eval.num_images"
        )
    log_p = special.log_softmax(np.asarray(logits, np.float64), axis=1)
    bounds = [i * len(log_p) // _SPLITS for i in range(_SPLITS + 1)]
    scores = []
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        part = log_p[start:stop]
        log_mean = special.logsumexp(part, axis=0) - np.log(len(part))
        divergence = np.sum(np.exp(part) * (part - log_mean), axis=1)
        scores.append(np.exp(divergence.mean()))
    return float(np.mean(scores))
