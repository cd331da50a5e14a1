"""Scores of samples, by the name a config gives them."""

from collections.abc import Callable, Sequence

import numpy as np
from ml_collections import ConfigDict

from jcm.data import Dataset
from jcm.errors import JcmError
from jcm.metrics.classifier import Classifier
from jcm.metrics.feature_scores import SCORES, FeatureScores

# Called with uint8 samples and the labels asked for, or None.
Score = Callable[[np.ndarray, Sequence[int] | None], dict[str, float]]

_CLASSIFIER = "classifier"


def check(config: ConfigDict, dataset: Dataset) -> None:
    """Makes sure that `create` will work, weights included, before what takes long.

    Raises:
      JcmError: for an unknown name, missing weights, or data that a score cannot use.
    """
    for name in config.eval.scores:
        if name == _CLASSIFIER:
            Classifier.check(dataset)
        elif name in SCORES:
            FeatureScores.check(name, config)
        else:
            raise JcmError(
                f"config.eval.scores: {name!r} is unknown: use some of"
                f" {', '.join((_CLASSIFIER, *SCORES))}"
            )


def create(config: ConfigDict, dataset: Dataset) -> list[Score]:
    """The scores that `config.eval.scores` names, made ready on the real images.

    Raises:
      JcmError: for an unknown name, missing weights, or data that a score cannot use.
    """
    check(config, dataset)
    made: list[Score] = []
    by_network: dict[str, list[str]] = {}
    for name in config.eval.scores:
        if name == _CLASSIFIER:
            made.append(Classifier(dataset))
        else:
            by_network.setdefault(SCORES[name].network, []).append(name)
    return made + [
        FeatureScores(names, dataset, config) for names in by_network.values()
    ]
