"""Scores on the features of published networks."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import UInt8
from ml_collections import ConfigDict

from jcm.data import Dataset
from jcm.metrics import (
    frechet,
    inception_score,
    kernel,
    manifold,
    networks,
    reference,
    statistics,
)
from jcm.metrics.statistics import Statistics
from jcm.runtime.errors import JcmError


@dataclasses.dataclass(frozen=True)
class _Score:
    """A score of one kind of feature.

    Attributes:
      network: a key of `networks.NETWORKS`.
      feature: one of the features that it gives.
      least: how many images it takes, of a feature's size.
      by_moments: from moments of samples and real images, where they are enough.
      by_rows: from rows of both, by column.
      needs_real: whether real images count at all.
      columns: what it gives.
      more_is_better: or less is.
    """

    network: str
    feature: str
    least: Callable[[int], int]
    by_moments: Callable[[frechet.Moments, frechet.Moments], float] | None = None
    by_rows: Callable[[np.ndarray, np.ndarray], dict[str, float]] | None = None
    needs_real: bool = True
    columns: tuple[str, ...] = ()
    more_is_better: bool = False

    @property
    def uses_published(self) -> bool:
        """Whether it can compare with statistics that others published."""
        return self.needs_real and self.network == "inception"


def _frechet(network: str, feature: str, column: str) -> _Score:
    # With as few images as numbers the covariance is singular, the distance too high.
    return _Score(
        *(network, feature, lambda size: size + 1),
        by_moments=frechet.distance,
        columns=(column,),
    )


SCORES = {
    "fid": _frechet("inception", "pool", "fid"),
    "sfid": _frechet("inception", "spatial", "sfid"),
    "kid": _Score(
        *("inception", "pool", lambda _: kernel.LEAST),
        by_rows=lambda samples, real: {"kid": kernel.distance(samples, real)},
        columns=("kid",),
    ),
    "inception_score": _Score(
        *("inception", "logits", lambda _: inception_score.LEAST),
        by_rows=lambda samples, _: {"inception_score": inception_score.score(samples)},
        needs_real=False,
        columns=("inception_score",),
        more_is_better=True,
    ),
    "precision_recall": _Score(
        *("inception", "pool", lambda _: manifold.PRECISION_K + 1),
        by_rows=manifold.precision_recall,
        columns=("precision", "recall"),
        more_is_better=True,
    ),
    "density_coverage": _Score(
        *("inception", "pool", lambda _: manifold.DENSITY_K + 1),
        by_rows=manifold.density_coverage,
        columns=("density", "coverage"),
        more_is_better=True,
    ),
    "fd_dinov2": _frechet("dinov2", "cls", "fd_dinov2"),
    "fd_efficientnet_lite0": _frechet(
        "efficientnet_lite0", "stage", "fd_efficientnet_lite0"
    ),
}


class FeatureScores:
    """All the scores of a config that look through one network, which looks once."""

    def __init__(self, names: Sequence[str], dataset: Dataset, config: ConfigDict):
        """Reads the weights; the real images are looked at by `prepare`.

        Args:
          names: keys of `SCORES` with the same network.
          dataset: the real images.
          config: the whole config.

        Raises:
          JcmError: for missing weights, too few samples, or too few real images.
        """
        self._config, self._dataset = config, dataset
        self._scores = {name: SCORES[name] for name in names}
        (network,) = {score.network for score in self._scores.values()}
        self._network = networks.load(network, config.weights)
        # Only Inception's statistics are published.
        self._published = config.eval.reference if network == "inception" else ""
        size, channels = dataset.image_size, config.data.channels
        self._sizes = self._network.sizes((size, size, channels))
        self._least = {
            name: score.least(self._sizes[score.feature])
            for name, score in self._scores.items()
        }
        self._check_count(config.eval.num_images, "config.eval.num_images is")
        if not self._published:
            compared = [n for n, score in self._scores.items() if score.needs_real]
            self._check_count(len(dataset), f"{dataset.name} has", of_real=compared)
        self._real: dict[str, Statistics] = {}

    def identity(self) -> dict[str, Any]:
        """What each of the scores depends on but the samples."""
        digest = ""
        if self._published:
            with pathlib.Path(self._published).expanduser().open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        depends = {
            "network": self._network.version,
            "data": self._dataset.fingerprint,
            "reference": digest,
        }
        return dict.fromkeys(self._scores, depends)

    def prepare(self) -> None:
        """Looks at the real images, unless that was done before.

        Every process must call.

        Raises:
          JcmError: for a reference that does not fit.
        """
        compared = [score for score in self._scores.values() if score.needs_real]
        wanted = {score.feature for score in compared}
        rows = {score.feature for score in compared if score.by_rows}
        if not compared:
            return
        if self._published:
            self._real = reference.published(
                *(self._published, self._network, wanted, rows),
                self._dataset.image_size,
            )
            for name, score in self._scores.items():
                self._check_reference(name, score)
        known = self._real
        rows -= {name for name, real in known.items() if real.rows is not None}
        wanted = (wanted - set(known)) | rows
        if not wanted:
            return
        if known:
            logging.info(
                "config.eval.reference=%s has no %s: taken from %s",
                *(self._published, " or ".join(sorted(wanted)), self._dataset.name),
            )
        self._check_count(
            *(len(self._dataset), f"{self._dataset.name} has"),
            of_real=[
                name
                for name, score in self._scores.items()
                if score.needs_real
                and score.feature in wanted
                and (score.by_rows or score.feature not in known)
            ],
        )
        found = reference.of_dataset(self._network, self._dataset, wanted, rows)
        for name, of_data in found.items():
            if name in known:
                of_data = Statistics(known[name].moments, of_data.rows)
            self._real[name] = of_data

    def __call__(
        self, images: UInt8[np.ndarray, "n h w c"], labels: Sequence[int] | None = None
    ) -> dict[str, float]:
        """Scores of samples; the labels do not count.

        Every process must call, after `prepare`.

        Raises:
          JcmError: for too few samples, or anything but uint8 images.
        """
        del labels
        self._check_count(len(images), "the samples are")
        seen = statistics.collect(
            self._network,
            lambda indices: images[indices],
            len(images),
            wanted={score.feature for score in self._scores.values()},
            rows={s.feature for s in self._scores.values() if s.by_rows},
            title=f"{self._network.name} of samples",
        )
        found: dict[str, float] = {}
        for score in self._scores.values():
            samples, real = seen[score.feature], self._real.get(score.feature)
            if score.by_moments:
                value = score.by_moments(samples.moments, real.moments)
                found |= dict.fromkeys(score.columns, value)
            else:
                found |= score.by_rows(samples.rows, real.rows if real else None)
        if not np.isfinite(list(found.values())).all():
            raise JcmError(f"{found} are not finite: the samples are broken")
        return found

    def _check_count(
        self, count: int, where: str, of_real: Sequence[str] | None = None
    ) -> None:
        """Of samples for all the scores, or of real images for some."""
        for name in self._scores if of_real is None else of_real:
            least = self._least[name]
            if count < least:
                more = "raise config.eval.num_images, or " if of_real is None else ""
                raise JcmError(
                    f"{name} needs {least} images at least, and {where} {count}: {more}"
                    "name other scores, or none by --config.eval.scores='()'"
                )

    def _check_reference(self, name: str, score: _Score) -> None:
        real = self._real.get(score.feature)
        if not score.needs_real or real is None:
            return
        size = self._sizes[score.feature]
        if len(real.moments.mean) != size:
            raise JcmError(
                f"config.eval.reference={self._published} has features of"
                f" {len(real.moments.mean)} numbers, not {size}: it is of another"
                " network"
            )
        # A file of mean and covariance does not tell of how many.
        count = real.moments.count
        if score.by_rows:
            count = 0 if real.rows is None else len(real.rows)
        if 0 < count < self._least[name]:
            raise JcmError(
                f"config.eval.reference={self._published} has {count} images, and"
                f" {name} needs {self._least[name]} at least: drop one"
            )
