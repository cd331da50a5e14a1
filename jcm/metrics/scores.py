"""The scores that a config can name, and the table of their columns."""

import pathlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from ml_collections import ConfigDict

from jcm.data import Dataset
from jcm.metrics import classifier
from jcm.metrics.classifier import Classifier
from jcm.metrics.feature_scores import FEATURE_SCORES, NetworkScores
from jcm.runtime.errors import JcmError

_CLASSIFIER = "classifier"
# The columns of the classifier that can be better or worse, and whether higher is
# better.
_CLASSIFIER_COLUMNS = {"confident": True, "fd": False, "as_asked": True}


@runtime_checkable
class ScoreGroup(Protocol):
    """Scores that are computed together, since they share one network."""

    def identity(self) -> dict[str, Any]:
        """Returns, for each score, all that its value depends on except the samples.

        The values are plain data, as JSON gives it back.
        """

    def prepare(self) -> None:
        """Computes what the scores need of the real images.

        Every process must call it.
        """

    def __call__(
        self, images: np.ndarray, labels: Sequence[int] | None
    ) -> dict[str, float]:
        """Scores uint8 samples (n, h, w, c) and returns the columns.

        Every process must call it, after `prepare`.

        Args:
          images: the samples.
          labels: the class that each sample was generated for; None if the model is
            unconditional.
        """


def create(config: ConfigDict, dataset: Dataset) -> list[ScoreGroup]:
    """Creates the scores that `config.eval.scores` names.

    Reads the weights of the networks, and downloads them if they are missing; no image
    is used yet.

    Raises:
      JcmError: if a name is unknown, weights are missing, there are too few images, or
        a score cannot use the data set.
    """
    published = config.eval.reference
    if published and not pathlib.Path(published).expanduser().is_file():
        raise JcmError(
            f"config.eval.reference={published} does not exist: name an .npz file"
        )
    uses = [
        FEATURE_SCORES[name].uses_published
        for name in config.eval.scores
        if name in FEATURE_SCORES
    ]
    if published and not any(uses):
        raise JcmError(
            f"config.eval.reference={published} is for Inception, which no score of"
            f" config.eval.scores={tuple(config.eval.scores)} uses: drop it"
        )
    groups: list[ScoreGroup] = []
    by_network: dict[str, list[str]] = {}
    for name in config.eval.scores:
        if name == _CLASSIFIER:
            groups.append(Classifier(dataset, config.eval.num_images))
        elif name in FEATURE_SCORES:
            by_network.setdefault(FEATURE_SCORES[name].network, []).append(name)
        else:
            raise JcmError(
                f"config.eval.scores: {name!r} is unknown: use some of"
                f" {', '.join((_CLASSIFIER, *FEATURE_SCORES))}"
            )
    return groups + [
        NetworkScores(names, dataset, config) for names in by_network.values()
    ]


def columns(name: str) -> tuple[str, ...]:
    """Returns the columns that a score gives."""
    return classifier.COLUMNS if name == _CLASSIFIER else FEATURE_SCORES[name].columns


def of_column(column: str) -> tuple[str, bool]:
    """Returns the score that gives a column, and whether higher is better.

    Raises:
      JcmError: if no score gives this column.
    """
    known = {
        name: (_CLASSIFIER, higher) for name, higher in _CLASSIFIER_COLUMNS.items()
    }
    for name, score in FEATURE_SCORES.items():
        known |= dict.fromkeys(score.columns, (name, score.higher_is_better))
    if column not in known:
        raise JcmError(f"no score gives {column!r}: use one of {', '.join(known)}")
    return known[column]
