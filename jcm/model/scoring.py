"""Scores of models. Samples and scores are made once and kept in the workdir.

WORKDIR/evaluation/scores.jsonl    a line for each model, way of sampling and seed
WORKDIR/evaluation/*.uint8         samples that are not complete; a restart resumes them
WORKDIR/evaluation/*.uint8.jsonl   the length and hash of what is complete of them
WORKDIR/evaluation/*.npz           samples that config.eval.keep_samples keeps; later
                                   scores are computed from them
WORKDIR/evaluation/*.npz.sha256    their hash
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import UInt8
from ml_collections import ConfigDict

from jcm import networks
from jcm.data import Dataset
from jcm.diffusion.schedule import Schedule
from jcm.metrics import scores as scores_lib
from jcm.model.labels import image_labels
from jcm.model.model import Model
from jcm.model.pixels import fill, sample_pixels, write_npz
from jcm.run import recorded_scores
from jcm.runtime import disk, distributed, growing, hashes, npz
from jcm.runtime.errors import JcmError

# Least number of images between two writes, and so the most that a kill can lose.
_PART = 1024
# The score that depends on the numbers of the classes.
_BY_CLASS = "classifier"
# An error names at most this many classes.
_NAMED_AT_MOST = 3


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model to score.

    Attributes:
      name: for tables: "teacher", "diffusion" or "consistency", or its source.
      model: the model.
      digest: fingerprint of its weights.
    """

    name: str
    model: Model
    digest: str

    @classmethod
    def of(cls, name: str, model: Model) -> "Subject":
        """Creates the subject and computes the fingerprint."""
        return cls(name, model, networks.fingerprint(model.params))


class Scorer:
    """Scores models as a config asks, and records the scores in the workdir."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: str | os.PathLike,
        dataset: Dataset,
        given: int | None = None,
    ):
        """Creates the scores; no image is used yet.

        Args:
          config: `eval` and `sample.labels` say what to score.
          workdir: where samples and scores are kept.
          dataset: the real images, from `metrics.scores.real_images`.
          given: the number of pictures, to score pictures instead of models.

        Raises:
          JcmError: if a score cannot be computed.
        """
        self._config, self._dataset, self._prepared = config, dataset, False
        self._folder = pathlib.Path(workdir) / "evaluation"
        self._path = pathlib.Path(workdir) / recorded_scores.FILE
        self._groups = scores_lib.create(config, dataset, given)
        # By name of a score, all that its value depends on except the samples.
        self._by: dict[str, Any] = {}
        for group in self._groups:
            self._by |= group.identity()
        self._records: list[Mapping[str, Any]] = [*recorded_scores.read(workdir)]

    def __call__(
        self, subject: Subject, schedule: Schedule, seed: int
    ) -> dict[str, float]:
        """Returns all scores of `config.eval.num_images` samples, by column.

        What the workdir has is not computed again. Every process must call.

        Args:
          subject: the model.
          schedule: how to sample it.
          seed: determines the samples.

        Raises:
          JcmError: if a sample is not finite, if there are too few for a score, or if
            the model has other classes than the real images.
        """
        title = f"{subject.name}, {schedule.title}, seed {seed}"
        identity = identity_of(
            subject,
            schedule,
            seed,
            self._config.sample.labels,
            self._config.eval.num_images,
        )
        stem = self._folder / stem_of(title, identity)
        kept, unfinished = stem.with_suffix(".npz"), stem.with_suffix(".uint8")
        recorded, is_kept = self._recorded(identity), kept.exists()
        keep = self._config.eval.keep_samples
        if _in_all_processes(bool(recorded) and (is_kept or not keep)):
            _delete(unfinished)  # if a kill came between the record and the deletion
            return recorded
        self._prepare()
        started = time.monotonic()
        labels = self._labels(subject.model)
        shape = (self._config.eval.num_images, *subject.model.denoiser.image_shape)
        pixels = _read(kept, shape) if is_kept else None
        reads = _in_all_processes(pixels is not None)
        if pixels is None or not reads:
            pixels = self._sample(
                subject.model, schedule, seed, labels, unfinished, title
            )
        scores = self._score(pixels, labels)
        if keep and not reads and jax.process_index() == 0:
            _write(kept, pixels, labels)
        self._record(identity, scores, write=not recorded)
        _delete(unfinished)
        _log(title, len(pixels), started, scores)
        return scores

    def of_pictures(self, name: str, pictures: Dataset) -> dict[str, float]:
        """Returns all scores of pictures that another program made, by column.

        What the workdir has is not computed again. Every process must call.

        Args:
          name: for the table.
          pictures: the samples. If their classes are some of those of the real images,
            it is scored whether they are recognised as what they are said to be.
        """
        identity = {
            "model": name,
            "step": None,
            "weights": None,
            "samples": pictures.fingerprint,
            "num_images": len(pictures),
        }
        recorded = self._recorded(identity)
        if _in_all_processes(bool(recorded)):
            return recorded
        self._prepare()
        started, arrays = time.monotonic(), pictures.arrays()
        names, labels = pictures.class_names, None
        places = {name: i for i, name in enumerate(self._dataset.class_names)}
        if places.keys() >= set(names):
            labels = [places[names[label]] for label in arrays["label"]]
        scores = self._score(arrays["image"], labels)
        self._record(identity, scores, write=True)
        _log(name, len(pictures), started, scores)
        return scores

    def _record(
        self, identity: dict[str, Any], scores: dict[str, float], *, write: bool
    ) -> None:
        """Keeps scores in memory, and appends them to the file of scores."""
        record = identity | {"by": self._by, "scores": scores}
        if write and jax.process_index() == 0:
            self._append(record)
        self._records.append(record)

    def _recorded(self, identity: dict[str, Any]) -> dict[str, float]:
        """Returns the recorded scores of these samples; {} if one is missing."""
        records = [
            record
            for record in self._records
            if all(record.get(key) == value for key, value in identity.items())
        ]
        recorded: dict[str, float] = {}
        for name, by in self._by.items():
            found = [each for each in records if each.get("by", {}).get(name) == by]
            if not found:
                return {}
            scores = found[-1]["scores"]
            columns = scores_lib.columns(name)
            recorded |= {key: scores[key] for key in columns if key in scores}
        return recorded

    def _prepare(self) -> None:
        """Computes once what the scores need of the real images."""
        if not self._prepared:
            for group in self._groups:
                group.prepare()
            self._prepared = True

    def _labels(self, model: Model) -> list[int] | None:
        """Returns the label of each sample."""
        check_classes(self._config, model.class_names, self._dataset)
        count = self._config.eval.num_images
        return image_labels(self._config, count, model.denoiser, model.class_names)

    def _sample(
        self,
        model: Model,
        schedule: Schedule,
        seed: int,
        labels: list[int] | None,
        path: pathlib.Path,
        title: str,
    ) -> UInt8[np.ndarray, "n h w c"]:
        """Samples into the file `path`, resuming what is there."""

        def make(part: range) -> UInt8[np.ndarray, "n h w c"]:
            return sample_pixels(
                model.sampler,
                model.params,
                seed,
                part,
                schedule,
                None if labels is None else [labels[i] for i in part],
            )

        if "sampler" not in vars(model):  # its first batch compiles it
            logging.info("compiling the sampler")
        shape = (self._config.eval.num_images, *model.denoiser.image_shape)
        # Only the last batch of all processes may be smaller than the others.
        batch = model.sampler.batch_size * jax.process_count()
        part = -(-_PART // batch) * batch
        return fill(path, shape, make, title, part)

    def _score(
        self, pixels: UInt8[np.ndarray, "n h w c"], labels: list[int] | None
    ) -> dict[str, float]:
        """Computes all scores, with the values of process 0."""
        scores: dict[str, float] = {}
        for group in self._groups:
            scores |= group(pixels, labels)
        # A search samples at levels that depend on scores, so all processes need the
        # same values, to the bit.
        values = distributed.from_main(np.asarray(list(scores.values())))
        return dict(zip(scores, values.tolist(), strict=True))

    def _append(self, record: dict[str, Any]) -> None:
        """Appends a line to the file of scores."""
        line = json.dumps(record, allow_nan=False) + "\n"
        with disk.writing(self._path):
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._path.open("a+b") as file:
                # If a kill has left an incomplete line, the record begins a new one.
                file.seek(max(file.tell() - 1, 0))
                start = b"" if file.read() in (b"", b"\n") else b"\n"
                file.write(start + line.encode())


def check_classes(
    config: ConfigDict, class_names: Sequence[str], real: Dataset
) -> None:
    """Checks that the classes of a model are those of the real images, if that matters.

    Args:
      config: `eval.scores` says what is scored.
      class_names: of the model, in the order of their numbers; numbers alone may mean
        any classes; empty for an unconditional model.
      real: the real images.

    Raises:
      JcmError: if a score would compare the numbers of other classes.
    """
    ours = real.class_names
    if _BY_CLASS not in config.eval.scores or class_names in ((), ours):
        return
    if len(ours) != len(class_names) or not all(map(str.isdigit, class_names)):
        raise JcmError(
            f"the model has the classes {_short(class_names)}, and the real images"
            f" {_short(ours)}: name images of the same classes, or drop {_BY_CLASS!r}"
            " from config.eval.scores"
        )


def identity_of(
    subject: Subject,
    schedule: Schedule,
    seed: int,
    labels: Sequence[int | str],
    count: int,
) -> dict[str, Any]:
    """Returns all that samples depend on, as JSON gives it back.

    Args:
      subject: the model.
      schedule: how to sample it.
      seed: of the samples.
      labels: `config.sample.labels`.
      count: number of samples.
    """
    return {
        "model": subject.name,
        "step": subject.model.step,
        "weights": subject.digest,
        "samples": schedule.title,
        "sigmas": list(schedule.sigmas),
        "solver": schedule.solver,
        "labels": list(labels),
        "seed": seed,
        "num_images": count,
    }


def stem_of(title: str, identity: Mapping[str, Any]) -> str:
    """Returns the name of the files of samples, without a suffix.

    It has a digest because samples with other noise levels, labels or weights may have
    the same title.

    Args:
      title: a short description of the samples.
      identity: what `identity_of` returns.
    """
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    return re.sub(r"\W+", "_", f"{title}_{digest}".lower())


def _short(names: Sequence[str]) -> str:
    """Returns the first names, and how many there are."""
    some = ", ".join(names[:_NAMED_AT_MOST])
    return some if len(names) <= _NAMED_AT_MOST else f"{some}, ... ({len(names)})"


def _log(title: str, count: int, started: float, scores: dict[str, float]) -> None:
    """Logs scores, and the time since `started` in seconds."""
    logging.info(
        "%s: %d images in %.1f s  %s",
        *(title, count, time.monotonic() - started),
        "  ".join(f"{column} {value:.4g}" for column, value in scores.items()),
    )


def _write(
    path: pathlib.Path, pixels: UInt8[np.ndarray, "n h w c"], labels: list[int] | None
) -> None:
    """Writes samples to keep, and beside them their hash."""
    write_npz(path, pixels, labels)
    hashes.write(hashes.beside(path), {path.name: hashes.sha256(path)})


def _read(
    path: pathlib.Path, shape: tuple[int, ...]
) -> UInt8[np.ndarray, "n h w c"] | None:
    """Reads samples that were kept; None if they are not what was written."""
    remedy = "the samples are made again"
    try:
        with hashes.comparing(hashes.beside(path), [path.name], remedy):
            expected = {"arr_0": npz.Array(("uint8",), shape)}
            return npz.read(path, expected, remedy)["arr_0"]
    except JcmError as error:
        logging.warning("%s", error)
        return None


def _delete(unfinished: pathlib.Path) -> None:
    """Deletes samples that are scored, where that is possible."""
    if jax.process_index() == 0:
        with contextlib.suppress(OSError):
            growing.delete(unfinished)


def _in_all_processes(condition: bool) -> bool:
    """Returns whether a condition holds in every process; every process must call."""
    return bool(distributed.gather(np.bool_(condition)).all())
