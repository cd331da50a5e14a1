"""Scores computed from the features of published networks."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import UInt8
from ml_collections import ConfigDict

from jcm.data import Dataset
from jcm.metrics import (
    features,
    frechet,
    inception_score,
    kid,
    networks,
    precision_recall,
    reference,
    statistics,
)
from jcm.metrics.statistics import Statistics
from jcm.runtime import hashes
from jcm.runtime.errors import JcmError
from jcm.runtime.paths import expanded


@dataclasses.dataclass(frozen=True)
class _FeatureScore:
    """How one score is computed from one kind of feature.

    Exactly one of `from_moments` and `from_rows` is set.

    Attributes:
      network: a key of `networks.NETWORKS`.
      feature: the name of a feature that this network computes.
      min_images: from the length of the feature vector to the fewest images that the
        score accepts.
      from_moments: from the moments of samples and of real images to the score.
      from_rows: from the features of samples and of real images, one row an image, to
        the columns. Scores without a reference get None for the real images.
      needs_real: whether samples are compared with real images.
      columns: the columns that the score gives.
      higher_is_better: whether a higher score is better.
    """

    network: str
    feature: str
    min_images: Callable[[int], int]
    from_moments: Callable[[frechet.Moments, frechet.Moments], float] | None = None
    from_rows: Callable[[Any, Any], dict[str, float]] | None = None
    needs_real: bool = True
    columns: tuple[str, ...] = ()
    higher_is_better: bool = False

    @property
    def uses_published(self) -> bool:
        """Whether the score can use statistics that others published."""
        return self.needs_real and self.network == "inception"


def _frechet(network: str, feature: str, column: str) -> _FeatureScore:
    # With no more images than numbers in a feature, the covariance is singular and the
    # distance too high.
    return _FeatureScore(
        *(network, feature, lambda size: size + 1),
        from_moments=frechet.distance,
        columns=(column,),
    )


FEATURE_SCORES = {
    "fid": _frechet("inception", "pool", "fid"),
    "sfid": _frechet("inception", "spatial", "sfid"),
    "kid": _FeatureScore(
        *("inception", "pool", lambda _: kid.MIN_IMAGES),
        from_rows=lambda samples, real: {"kid": kid.distance(samples, real)},
        columns=("kid",),
    ),
    "inception_score": _FeatureScore(
        *("inception", "logits", lambda _: inception_score.MIN_IMAGES),
        from_rows=lambda samples, _: {
            "inception_score": inception_score.score(samples)
        },
        needs_real=False,
        columns=("inception_score",),
        higher_is_better=True,
    ),
    "precision_recall": _FeatureScore(
        *("inception", "pool", lambda _: precision_recall.PRECISION_K + 1),
        from_rows=precision_recall.precision_recall,
        columns=("precision", "recall"),
        higher_is_better=True,
    ),
    "density_coverage": _FeatureScore(
        *("inception", "pool", lambda _: precision_recall.DENSITY_K + 1),
        from_rows=precision_recall.density_coverage,
        columns=("density", "coverage"),
        higher_is_better=True,
    ),
    "fd_dinov2": _frechet("dinov2", "cls", "fd_dinov2"),
    "fd_efficientnet_lite0": _frechet(
        "efficientnet_lite0", "stage", "fd_efficientnet_lite0"
    ),
}
"""The scores of features, by the names that `config.eval.scores` can have."""


class NetworkScores:
    """The scores of a config that use the same network, computed in one pass.

    This class is a `scores.ScoreGroup`.
    """

    def __init__(
        self,
        names: Sequence[str],
        dataset: Dataset,
        config: ConfigDict,
        given: int | None = None,
    ):
        """Reads the weights of the network; `prepare` handles the real images.

        Args:
          names: keys of `FEATURE_SCORES` with the same network.
          dataset: the real images.
          config: the whole config.
          given: the number of samples that another program made; None for none.

        Raises:
          JcmError: if weights are missing, or there are too few samples or real images.
        """
        self._config, self._dataset = config, dataset
        self._scores = {name: FEATURE_SCORES[name] for name in names}
        (network,) = {score.network for score in self._scores.values()}
        self._network = networks.load(network, config.weights)
        # Published statistics are all of Inception's features. A folder has become the
        # data set.
        named = config.eval.reference if network == "inception" else ""
        self._published = named if named and expanded(named).is_file() else ""
        size, channels = dataset.image_size, config.data.channels
        self._sizes = self._network.sizes((size, size, channels))
        self._min_images = {
            name: score.min_images(self._sizes[score.feature])
            for name, score in self._scores.items()
        }
        for name, least in self._min_images.items():
            features.check_count(name, least, config.eval.num_images, given)
        if not self._published:
            self._check_dataset(
                name for name, score in self._scores.items() if score.needs_real
            )
        self._real: dict[str, Statistics] = {}

    def identity(self) -> dict[str, dict[str, str]]:
        """Returns, for each score, all that its value depends on except the samples."""
        digest = ""
        if self._published:
            digest = hashes.known(expanded(self._published))
        depends = {
            "network": self._network.version,
            "data": self._dataset.fingerprint,
            "reference": digest,
        }
        return dict.fromkeys(self._scores, depends)

    def prepare(self) -> None:
        """Reads or computes the statistics of the real images.

        A published reference is used as far as it goes. The rest comes from the data
        set, for which the statistics are computed once and cached.

        Every process must call it.

        Raises:
          JcmError: if the published reference does not fit.
        """
        compared = [score for score in self._scores.values() if score.needs_real]
        wanted = {score.feature for score in compared}
        rows = {score.feature for score in compared if score.from_rows}
        if wanted and self._published:
            self._real = reference.published(
                *(self._published, self._network, self._sizes, wanted, rows),
                self._dataset.image_size,
            )
            for name, score in self._scores.items():
                self._check_reference(name, score)
        known = set(self._real)
        rows -= {name for name, real in self._real.items() if real.rows is not None}
        wanted = (wanted - known) | rows
        if not wanted:
            return
        if known:
            logging.info(
                "config.eval.reference=%s has no %s: using those of %s",
                *(self._published, " or ".join(sorted(wanted)), self._dataset.name),
            )
        self._check_dataset(
            name
            for name, score in self._scores.items()
            if score.needs_real
            and score.feature in wanted
            and (score.from_rows or score.feature not in known)
        )
        found = reference.of_dataset(self._network, self._dataset, wanted, rows)
        for name, of_data in found.items():
            # The moments of a published reference take precedence.
            if name in known:
                of_data = Statistics(self._real[name].moments, of_data.rows)
            self._real[name] = of_data

    def __call__(
        self, images: UInt8[np.ndarray, "n h w c"], labels: Sequence[int] | None = None
    ) -> dict[str, float]:
        """Scores samples and returns the columns; labels are ignored.

        Every process must call it, after `prepare`.

        Raises:
          JcmError: if there are too few samples, or the images are not uint8.
        """
        del labels
        for name in self._scores:
            self._check_count(
                *(name, len(images), f"there are {len(images)} samples"),
                "raise config.eval.num_images, or choose other scores",
            )
        of_samples = statistics.collect(
            self._network,
            lambda indices: images[indices],
            len(images),
            wanted={score.feature for score in self._scores.values()},
            rows={s.feature for s in self._scores.values() if s.from_rows},
            title=f"{self._network.name} of samples",
        )
        found: dict[str, float] = {}
        for score in self._scores.values():
            samples = of_samples[score.feature]
            # None for a score without a reference.
            real: Any = self._real.get(score.feature)
            if score.from_moments:
                value = score.from_moments(samples.moments, real.moments)
                found |= dict.fromkeys(score.columns, value)
            elif score.from_rows:
                found |= score.from_rows(samples.rows, real.rows if real else None)
        if not np.isfinite(list(found.values())).all():
            raise JcmError(
                f"the scores are not finite ({found}): the samples are broken, use"
                " another checkpoint"
            )
        return found

    def _check_count(self, name: str, count: int, shown: str, remedy: str) -> None:
        least = self._min_images[name]
        if count < least:
            raise JcmError(
                f"{name} needs at least {least} images, but {shown}: {remedy} with"
                " config.eval.scores, or none with config.eval.scores=()"
            )

    def _check_dataset(self, names: Iterable[str]) -> None:
        """Checks that the data set has enough images for the named scores."""
        count = len(self._dataset)
        for name in names:
            self._check_count(
                *(name, count, f"{self._dataset.name} has {count}"),
                "choose other scores",
            )

    def _check_reference(self, name: str, score: _FeatureScore) -> None:
        """Checks that the published reference, if it has the feature, fits a score."""
        real = self._real.get(score.feature)
        if not score.needs_real or real is None:
            return
        # A file of mean and covariance does not state its number of images.
        count = real.moments.count
        if score.from_rows:
            count = 0 if real.rows is None else len(real.rows)
        if count:
            self._check_count(
                *(name, count, f"config.eval.reference={self._published} has {count}"),
                "name another reference, or choose other scores",
            )
