"""Scores of samples, by the name a config gives them."""

from collections.abc import Callable, Sequence

import numpy as np

from jcm.data import Dataset
from jcm.errors import JcmError
from jcm.metrics.classifier import Classifier

# Called with uint8 samples and the labels asked for, or None.
Score = Callable[[np.ndarray, Sequence[int] | None], dict[str, float]]

_SCORES = {"classifier": Classifier}


def check(names: Sequence[str], dataset: Dataset) -> None:
    """Makes sure that `create` will work, in no time.

    Raises:
      JcmError: for an unknown name, or data that a score cannot use.
    """
    for name in names:
        if name not in _SCORES:
            raise JcmError(
                f"config.eval.scores: {name!r} is unknown: use some of"
                f" {', '.join(_SCORES)}"
            )
        _SCORES[name].check(dataset)


def create(names: Sequence[str], dataset: Dataset) -> list[Score]:
    """The scores that `config.eval.scores` names, made ready on the real images.

    Raises:
      JcmError: for an unknown name, or data that a score cannot use.
    """
    check(names, dataset)
    return [_SCORES[name](dataset) for name in names]
