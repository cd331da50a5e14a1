"""Scores of samples, perceptual distances, and the published networks they use.

A *score* is what `config.eval.scores` names. It gives one or more numbers, its
*columns*: `precision_recall` gives the columns `precision` and `recall`.
*Features* are what a network computes for each image, *statistics* summarise the
features of many images, and the *reference* is the statistics of the real images.

    from jcm import metrics

    network = metrics.networks.load("efficientnet_lite0")
    a, b = (
        metrics.frechet.moments(found["pool"])
        for images in (samples, real)  # uint8 (n, h, w, c)
        for found in metrics.features.extract(network, [images], ["pool"])
    )
    distance = metrics.frechet.distance(a, b)

`jcm.evaluate` samples a model and computes the scores that a config can name. Each
module has one score, or what scores need:

- `frechet` (FID), `kid`, `inception_score`, `precision_recall`: of features;
- `lpips`: perceptual distances between pairs of images;
- `classifier`: the score that uses a small classifier of pixels;
- `networks`, `features`, `statistics`, `reference`, `weights`: networks that compute
  features, and what is computed with them;
- `scores`: the scores that a config names, and the table of their columns.
"""

from typing import TYPE_CHECKING

from jcm.runtime import lazy as _lazy

if TYPE_CHECKING:
    from jcm.metrics import classifier as classifier
    from jcm.metrics import features as features
    from jcm.metrics import frechet as frechet
    from jcm.metrics import inception_score as inception_score
    from jcm.metrics import kid as kid
    from jcm.metrics import lpips as lpips
    from jcm.metrics import networks as networks
    from jcm.metrics import precision_recall as precision_recall
    from jcm.metrics import reference as reference
    from jcm.metrics import scores as scores
    from jcm.metrics import statistics as statistics
    from jcm.metrics import weights as weights

__all__ = [
    "classifier",
    "features",
    "frechet",
    "inception_score",
    "kid",
    "lpips",
    "networks",
    "precision_recall",
    "reference",
    "scores",
    "statistics",
    "weights",
]
_lazy.namespace(__name__, {name: f"{__name__}.{name}" for name in __all__})
