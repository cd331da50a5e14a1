"""Scores of samples, by the name a config gives them."""

import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from ml_collections import ConfigDict

from jcm.data import Dataset
from jcm.errors import JcmError
from jcm.metrics import networks
from jcm.metrics.classifier import Classifier
from jcm.metrics.feature_scores import SCORES, FeatureScores

_CLASSIFIER = "classifier"
# What the classifier gives, and whether more of it is better.
_CLASSIFIER_COLUMNS = {"confident": True, "fd": False, "as_asked": True}


@runtime_checkable
class Score(Protocol):
    """One score or several that look at the samples together."""

    def prepare(self) -> None:
        """Looks at the real images; every process must call."""

    def __call__(
        self, images: np.ndarray, labels: Sequence[int] | None
    ) -> dict[str, float]:
        """Scores uint8 samples, with the labels asked for or None; as `prepare`."""


def check(config: ConfigDict, dataset: Dataset) -> list[Score]:
    """The scores that `config.eval.scores` names, before they look at images.

    Fetches weights where they are missing.

    Raises:
      JcmError: for an unknown name, missing weights, too few images, or data that a
        score cannot use.
    """
    published = config.eval.reference
    if published and not pathlib.Path(published).expanduser().is_file():
        raise JcmError(f"config.eval.reference={published} does not exist")
    made: list[Score] = []
    by_network: dict[str, list[str]] = {}
    for name in config.eval.scores:
        if name == _CLASSIFIER:
            made.append(Classifier(dataset))
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


def create(config: ConfigDict, dataset: Dataset) -> list[Score]:
    """The same, made ready on the real images; every process must call."""
    made = check(config, dataset)
    for score in made:
        score.prepare()
    return made


def identity(config: ConfigDict) -> dict[str, Any]:
    """All that the scores of the same samples and real images depend on, as JSON."""
    versions = [
        networks.NETWORKS[SCORES[name].network].VERSION if name in SCORES else 1
        for name in config.eval.scores
    ]
    digest = ""
    if config.eval.reference:
        with pathlib.Path(config.eval.reference).expanduser().open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "asked": list(config.eval.scores),
        "versions": versions,
        "reference": digest,
    }


def find(column: str) -> tuple[str, bool]:
    """Which score gives a column of the table, and whether more of it is better.

    Raises:
      JcmError: for an unknown column.
    """
    columns = {name: (_CLASSIFIER, more) for name, more in _CLASSIFIER_COLUMNS.items()}
    for name, score in SCORES.items():
        columns |= dict.fromkeys(score.columns, (name, score.more_is_better))
    if column not in columns:
        raise JcmError(f"{column!r} is no score: use one of {', '.join(columns)}")
    return columns[column]
