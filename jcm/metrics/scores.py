"""Scores of samples, by the name a config gives them."""

import pathlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from ml_collections import ConfigDict

from jcm.data import Dataset
from jcm.metrics import classifier
from jcm.metrics.classifier import Classifier
from jcm.metrics.feature_scores import SCORES, FeatureScores
from jcm.runtime.errors import JcmError

_CLASSIFIER = "classifier"
# What of the classifier's columns is better or worse, and whether more is better.
_CLASSIFIER_COLUMNS = {"confident": True, "fd": False, "as_asked": True}


@runtime_checkable
class Score(Protocol):
    """One score or several that look at the samples together."""

    def identity(self) -> dict[str, Any]:
        """For each score all that it depends on but the samples, as JSON gives it."""

    def prepare(self) -> None:
        """Looks at the real images; every process must call."""

    def __call__(
        self, images: np.ndarray, labels: Sequence[int] | None
    ) -> dict[str, float]:
        """Scores uint8 samples, with the labels asked for or None; as `prepare`."""


def create(config: ConfigDict, dataset: Dataset) -> list[Score]:
    """The scores that `config.eval.scores` names, before they look at images.

    Fetches weights where they are missing.

    Raises:
      JcmError: for an unknown name, missing weights, too few images, or data that a
        score cannot use.
    """
    published = config.eval.reference
    if published and not pathlib.Path(published).expanduser().is_file():
        raise JcmError(f"config.eval.reference={published} does not exist")
    uses = [SCORES[n].uses_published for n in config.eval.scores if n in SCORES]
    if published and not any(uses):
        raise JcmError(
            f"config.eval.reference={published} is of Inception, and no score of"
            f" config.eval.scores={tuple(config.eval.scores)} looks through it: drop it"
        )
    made: list[Score] = []
    by_network: dict[str, list[str]] = {}
    for name in config.eval.scores:
        if name == _CLASSIFIER:
            made.append(Classifier(dataset, config.eval.num_images))
        elif name in SCORES:
            by_network.setdefault(SCORES[name].network, []).append(name)
        else:
            raise JcmError(
                f"config.eval.scores: {name!r} is unknown: use some of"
                f" {', '.join((_CLASSIFIER, *SCORES))}"
            )
    return made + [
        FeatureScores(names, dataset, config) for names in by_network.values()
    ]


def columns(name: str) -> tuple[str, ...]:
    """What a score gives."""
    return classifier.COLUMNS if name == _CLASSIFIER else SCORES[name].columns


def find(column: str) -> tuple[str, bool]:
    """Which score gives a column of the table, and whether more of it is better.

    Raises:
      JcmError: for an unknown column.
    """
    known = {name: (_CLASSIFIER, more) for name, more in _CLASSIFIER_COLUMNS.items()}
    for name, score in SCORES.items():
        known |= dict.fromkeys(score.columns, (name, score.more_is_better))
    if column not in known:
        raise JcmError(f"{column!r} is no score: use one of {', '.join(known)}")
    return known[column]
