"""The scores that a config can name, and the table of their columns."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from ml_collections import ConfigDict

from jcm import data
from jcm.data import Dataset
from jcm.metrics import classifier, given
from jcm.metrics.classifier import Classifier
from jcm.metrics.feature_scores import FEATURE_SCORES, NetworkScores
from jcm.runtime.errors import JcmError
from jcm.runtime.paths import expanded

_CLASSIFIER = "classifier"
# The columns of the classifier that can be better or worse, and whether higher is
# better.
_MAIN = "fd"  # of the classifier
_CLASSIFIER_COLUMNS = {"confident": True, "fd": False, "as_asked": True}


@runtime_checkable
class ScoreGroup(Protocol):
    """Scores that are computed together, since they share one network."""

    def identity(self) -> dict[str, dict[str, str]]:
        """Returns, for each score, all that its value depends on except the samples.

        The values are texts by name, such as {"fid": {"data": "1f0c"}}.
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


def real_images(config: ConfigDict, dataset: Dataset | None = None) -> Dataset:
    """Returns the images that samples are compared with.

    Args:
      config: `eval.reference` may name a folder of pictures.
      dataset: the images without such a folder; by default those of `config.data`.

    Raises:
      JcmError: if they cannot be opened.
    """
    _check_exists(config)  # before the data set is prepared
    named = config.eval.reference
    if named and expanded(named).is_dir():
        return given.of_folder(config, named, "config.eval.reference")
    if dataset is None:
        dataset = data.load(config.data, config.data.split)
    return dataset


def create(
    config: ConfigDict, dataset: Dataset, count: int | None = None
) -> list[ScoreGroup]:
    """Creates the scores that `config.eval.scores` names.

    Reads the weights of the networks, and downloads them if they are missing; no image
    is used yet.

    Args:
      config: the whole config.
      dataset: the real images, from `real_images`.
      count: the number of samples that another program made; None for
        `config.eval.num_images`, which a model makes.

    Raises:
      JcmError: if a name is unknown, weights are missing, there are too few images, or
        a score cannot use the data set.
    """
    _check_reference(config)
    groups: list[ScoreGroup] = []
    by_network: dict[str, list[str]] = {}
    for name in config.eval.scores:
        if name == _CLASSIFIER:
            groups.append(Classifier(dataset, config.eval.num_images, count))
        elif name in FEATURE_SCORES:
            by_network.setdefault(FEATURE_SCORES[name].network, []).append(name)
        else:
            raise JcmError(
                f"config.eval.scores: {name!r} is unknown: use some of"
                f" {', '.join((_CLASSIFIER, *FEATURE_SCORES))}"
            )
    return groups + [
        NetworkScores(names, dataset, config, count) for names in by_network.values()
    ]


def _check_reference(config: ConfigDict) -> None:
    """Checks that `config.eval.reference` exists, and that a score uses it.

    Raises:
      JcmError: if not.
    """
    _check_exists(config)
    named, names = config.eval.reference, tuple(config.eval.scores)
    if not named or expanded(named).is_dir():
        return
    known = [FEATURE_SCORES[name] for name in names if name in FEATURE_SCORES]
    if not any(score.uses_published for score in known):
        raise JcmError(
            f"config.eval.reference={named} is for Inception, which no score of"
            f" config.eval.scores={names} uses: drop it, or name a folder of pictures"
        )


def _check_exists(config: ConfigDict) -> None:
    """Raises JcmError if `config.eval.reference` names nothing that exists."""
    named = config.eval.reference
    if named and not expanded(named).exists():
        raise JcmError(
            f"config.eval.reference={named} does not exist: name a folder of pictures,"
            " or an .npz file"
        )


def columns(name: str) -> tuple[str, ...]:
    """Returns the columns that a score gives."""
    return classifier.COLUMNS if name == _CLASSIFIER else FEATURE_SCORES[name].columns


def main_column(names: Sequence[str]) -> str:
    """Returns the column that decides which samples are better.

    Args:
      names: scores, such as `config.eval.scores`; the first decides.
    """
    first = names[0]
    return _MAIN if first == _CLASSIFIER else FEATURE_SCORES[first].columns[0]


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
