"""The Inception Score (Salimans et al. 2016, section 4)."""

import numpy as np
from jaxtyping import Float
from scipy import special

from jcm.runtime.errors import JcmError

LEAST = _SPLITS = 10


def score(logits: Float[np.ndarray, "n c"]) -> float:
    """Exp of the mean divergence of p(y | x) from p(y): clear and varied is high.

    The mean over ten equal parts in order, each with its own p(y).

    Args:
      logits: of the Inception network, without bias.

    Raises:
      JcmError: for fewer than ten images.
    """
    if len(logits) < _SPLITS:
        raise JcmError(
            f"the Inception Score needs {_SPLITS} images at least, here are"
            f" {len(logits)}: raise config.eval.num_images"
        )
    log_p = special.log_softmax(np.asarray(logits, np.float64), axis=1)
    bounds = [i * len(log_p) // _SPLITS for i in range(_SPLITS + 1)]
    found = []
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        part = log_p[start:stop]
        log_mean = special.logsumexp(part, axis=0) - np.log(len(part))
        divergence = np.sum(np.exp(part) * (part - log_mean), axis=1)
        found.append(np.exp(divergence.mean()))
    return float(np.mean(found))
