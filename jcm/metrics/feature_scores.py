"""Scores on the features of published networks."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from jcm.data import Dataset
from jcm.errors import JcmError
from jcm.metrics import (
    frechet,
    inception_score,
    kernel,
    manifold,
    networks,
    reference,
    statistics,
    weights,
)
from jcm.metrics.statistics import Statistics


@dataclasses.dataclass(frozen=True)
class _Score:
    """A score of one kind of feature.

    Attributes:
      network: a key of `networks.NETWORKS`.
      feature: one of the features that it gives.
      by_moments: from moments of samples and real images, where they are enough.
      by_rows: from rows of both.
      needs_real: whether real images count at all.
    """

    network: str
    feature: str
    by_moments: Callable[[frechet.Moments, frechet.Moments], float] | None = None
    by_rows: Callable[[np.ndarray, np.ndarray], float | dict[str, float]] | None = None
    needs_real: bool = True


SCORES = {
    "fid": _Score("inception", "pool", by_moments=frechet.distance),
    "sfid": _Score("inception", "spatial", by_moments=frechet.distance),
    "kid": _Score("inception", "pool", by_rows=kernel.distance),
    "inception_score": _Score(
        "inception",
        "logits",
        by_rows=lambda samples, _: inception_score.score(samples),
        needs_real=False,
    ),
    "precision_recall": _Score("inception", "pool", by_rows=manifold.precision_recall),
    "density_coverage": _Score("inception", "pool", by_rows=manifold.density_coverage),
    "fd_dinov2": _Score("dinov2", "cls", by_moments=frechet.distance),
    "fd_efficientnet_lite0": _Score(
        "efficientnet_lite0", "stage", by_moments=frechet.distance
    ),
}


class FeatureScores:
    """All the scores of a config that look through one network, which looks once."""

    def __init__(self, names: Sequence[str], dataset: Dataset, config: ConfigDict):
        """Reads the weights; looks at the real images, unless that was done before.

        Args:
          names: keys of `SCORES` with the same network.
          dataset: the real images.
          config: the whole config.

        Raises:
          JcmError: for missing weights or a reference that does not fit.
        """
        self._scores = {name: SCORES[name] for name in names}
        (network,) = {score.network for score in self._scores.values()}
        self._network = networks.load(network, config.weights)
        compared = [score for score in self._scores.values() if score.needs_real]
        wanted = {score.feature for score in compared}
        rows = {score.feature for score in compared if score.by_rows}
        self._real: dict[str, Statistics] = {}
        if config.eval.reference and network == "inception":
            self._real = reference.published(
                config.eval.reference, self._network, wanted, rows, dataset.image_size
            )
        elif compared:
            self._real = reference.of_dataset(self._network, dataset, wanted, rows)
        for name, score in self._scores.items():
            self._check_reference(config, name, score)

    @staticmethod
    def check(name: str, config: ConfigDict) -> None:
        """Makes sure that weights and reference are there.

        Raises:
          JcmError: says what is missing.
        """
        score = SCORES[name]
        weights.path(score.network, config.weights)
        reference_file = config.eval.reference
        if reference_file and not pathlib.Path(reference_file).expanduser().exists():
            raise JcmError(f"config.eval.reference={reference_file} does not exist")

    def __call__(
        self, images: UInt8[np.ndarray, "n h w c"], labels: Sequence[int] | None = None
    ) -> dict[str, float]:
        """Scores of samples; the labels do not count.

        Raises:
          JcmError: for too few samples, or anything but uint8 images.
        """
        del labels
        seen = statistics.collect(
            self._network,
            lambda indices: images[indices],
            len(images),
            wanted={score.feature for score in self._scores.values()},
            rows={s.feature for s in self._scores.values() if s.by_rows},
            title=f"{self._network.name} of samples",
        )
        found: dict[str, float] = {}
        for name, score in self._scores.items():
            samples, real = seen[score.feature], self._real.get(score.feature)
            if score.by_moments:
                _check_rank(name, samples.moments)
                value = score.by_moments(samples.moments, real.moments)
            else:
                value = score.by_rows(samples.rows, real.rows if real else None)
            found |= value if isinstance(value, dict) else {name: value}
        if not np.isfinite(list(found.values())).all():
            raise JcmError(f"{found} are not finite: the samples are broken")
        return found

    def _check_reference(self, config: ConfigDict, name: str, score: _Score) -> None:
        if not score.needs_real:
            return
        real = self._real.get(score.feature)
        if real is None or (score.by_rows and real.rows is None):
            raise JcmError(
                f"config.eval.reference={config.eval.reference} has nothing for the"
                f" score {name}: drop the score, or the reference"
            )
        if real.moments.count:
            _check_rank(name, real.moments)


def _check_rank(name: str, moments: frechet.Moments) -> None:
    """With as few images as numbers the covariance is singular, the score too high."""
    if moments.count <= len(moments.mean):
        raise JcmError(
            f"{name} compares {len(moments.mean)} numbers and needs more images than"
            f" that, here are {moments.count}: raise config.eval.num_images, or drop"
            " the score"
        )
