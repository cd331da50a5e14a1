"""Samples of one model, made and scored once: what a kill leaves is gone on from.

WORKDIR/evaluation/scores.jsonl    a line for each model, way of sampling and seed
WORKDIR/evaluation/*.uint8         samples of the one under way, image after image
WORKDIR/evaluation/*.npz           samples that config.eval.keep_samples has kept;
                                   scores asked for later look at them
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tqdm
from absl import logging
from jaxtyping import UInt8
from ml_collections import ConfigDict

from jcm import networks
from jcm.data import Dataset
from jcm.diffusion.schedule import Schedule
from jcm.metrics import scores as scores_lib
from jcm.model import build
from jcm.model.model import Model
from jcm.model.pixels import sample_pixels, write_npz
from jcm.run import storage
from jcm.run import workdir as workdir_lib
from jcm.runtime import distributed

# Images between two writes, at least: what a kill can cost.
_PART = 1024


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is scored.

    Attributes:
      name: for people: teacher, diffusion, consistency.
      model: with its weights.
      digest: tells these weights from others.
    """

    name: str
    model: Model
    digest: str

    @classmethod
    def of(cls, name: str, model: Model) -> "Subject":
        """Computes the digest."""
        return cls(name, model, networks.fingerprint(model.params))


class Scorer:
    """Scores models as a config asks, and remembers in the workdir what it did."""

    def __init__(
        self, config: ConfigDict, workdir: str | os.PathLike, dataset: Dataset
    ):
        """Looks at no image yet.

        Raises:
          JcmError: where a score cannot be computed.
        """
        self._config, self._ready = config, False
        self._folder = pathlib.Path(workdir) / "evaluation"
        self._path = pathlib.Path(workdir) / workdir_lib.SCORES_FILE
        self._scores = scores_lib.create(config, dataset)
        # By name, all that a score of the same samples depends on.
        self._by: dict[str, Any] = {}
        for score in self._scores:
            self._by |= score.identity()
        self._done = workdir_lib.scores(workdir)

    def __call__(
        self, subject: Subject, schedule: Schedule, seed: int
    ) -> dict[str, float]:
        """All scores of `config.eval.num_images` samples; from the file where it can.

        Every process must call.

        Raises:
          JcmError: for samples that are not finite or too few for a score.
        """
        sampled = self._identity(subject, schedule, seed)
        count = self._config.eval.num_images
        title = f"{subject.name}, {schedule.title}, seed {seed}"
        # Not only the title: other noise levels or labels are other samples.
        digest = hashlib.sha256(json.dumps(sampled).encode()).hexdigest()[:12]
        slug = re.sub(r"\W+", "_", f"{title}_{digest}".lower())
        kept = self._folder / f"{slug}.npz"
        known, made = self._known(sampled), kept.exists()
        enough = known and (made or not self._config.eval.keep_samples)
        if distributed.gather(np.bool_(enough)).all():
            return known
        if not self._ready:
            for score in self._scores:
                score.prepare()
            self._ready = True
        started = time.monotonic()
        if distributed.gather(np.bool_(made)).all():
            with np.load(kept) as file:
                samples = file["arr_0"]
        else:
            path = self._folder / f"{slug}.uint8"
            samples = self._samples(subject, schedule, seed, path, title)
        labels = self._labels(subject.model)
        found: dict[str, float] = {}
        for score in self._scores:
            found |= score(samples, labels)
        # To the bit: what is sampled next may depend on it.
        values = distributed.from_main(np.asarray(list(found.values())))
        found = dict(zip(found, values.tolist(), strict=True))
        record = sampled | {"by": self._by, "scores": found}
        if jax.process_index() == 0:
            if self._config.eval.keep_samples and not made:
                write_npz(kept, samples, labels)
            if not known:
                self._record(record)
            (self._folder / f"{slug}.uint8").unlink(missing_ok=True)
        self._done.append(record)
        logging.info(
            "%s: %d images in %.1f s  %s",
            *(title, count, time.monotonic() - started),
            "  ".join(f"{key} {value:.4g}" for key, value in found.items()),
        )
        return found

    def _labels(self, model: Model) -> list[int] | None:
        count = self._config.eval.num_images
        return build.sample_labels(
            self._config, model.denoiser, model.class_names, count
        )

    def _known(self, sampled: dict[str, Any]) -> dict[str, float]:
        """All the scores of these samples, from whichever record has them, or none."""
        records = [
            record
            for record in self._done
            if all(record.get(key) == value for key, value in sampled.items())
        ]
        known: dict[str, float] = {}
        for name, by in self._by.items():
            found = [each for each in records if each.get("by", {}).get(name) == by]
            if not found:
                return {}
            columns = scores_lib.columns(name)
            scores = found[-1]["scores"]
            known |= {key: scores[key] for key in columns if key in scores}
        return known

    def _identity(
        self, subject: Subject, schedule: Schedule, seed: int
    ) -> dict[str, Any]:
        """All that the samples depend on, as JSON gives it back."""
        evaluation = self._config.eval
        return {
            "model": subject.name,
            "step": subject.model.step,
            "weights": subject.digest,
            "samples": schedule.title,
            "sigmas": list(schedule.sigmas),
            "solver": schedule.solver,
            "labels": list(self._config.sample.labels),
            "seed": seed,
            "num_images": evaluation.num_images,
        }

    def _samples(
        self,
        subject: Subject,
        schedule: Schedule,
        seed: int,
        path: pathlib.Path,
        title: str,
    ) -> UInt8[np.ndarray, "n h w c"]:
        trained, count = subject.model, self._config.eval.num_images
        arch = trained.denoiser.network.arch
        shape = (count, arch.image_size, arch.image_size, arch.image_channels)
        labels = self._labels(trained)

        def make(part: range) -> UInt8[np.ndarray, "n h w c"]:
            return sample_pixels(
                trained.sampler,
                trained.params,
                seed,
                part,
                schedule,
                None if labels is None else [labels[i] for i in part],
            )

        # Whole batches of all processes, but for the last.
        at_once = trained.sampler.batch_size * jax.process_count()
        part = -(-_PART // at_once) * at_once
        return fill(path, shape, make, title, part)

    def _record(self, record: dict[str, Any]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            # A kill may have left half a line.
            file.seek(max(file.tell() - 1, 0))
            start = b"" if file.read() in (b"", b"\n") else b"\n"
            line = json.dumps(record, allow_nan=False) + "\n"
            file.write(start + line.encode())


def fill(
    path: pathlib.Path,
    shape: tuple[int, ...],
    make: Callable[[range], UInt8[np.ndarray, "n h w c"]],
    title: str,
    part: int = _PART,
) -> UInt8[np.ndarray, "n h w c"]:
    """A file of images that grows part by part, and goes on where it was stopped.

    Args:
      path: of the file, which is nothing but the bytes of the images in order.
      shape: of all images.
      make: makes some of them; every process must call with the same.
      title: what the progress bar says.
      part: images between two writes.

    Returns:
      All images, mapped from the file.
    """
    each, count = math.prod(shape[1:]), shape[0]
    done, file = 0, None
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Open to the end: another program that makes the same may delete it before.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            file = stack.enter_context(os.fdopen(descriptor, "r+b"))
            done = file.seek(0, os.SEEK_END) // each
        done = distributed.from_main(done)
        progress = stack.enter_context(
            tqdm.tqdm(total=count, initial=done, desc=title, unit="image", delay=2)
        )
        for start in range(done, count, part):
            images = make(range(start, min(start + part, count)))
            if file:
                file.seek(start * each)
                file.write(images.tobytes())
                file.flush()
            progress.update(len(images))
        if file:
            os.fsync(file.fileno())  # or a file system over the network may keep it
        storage.sync(path)
        file = file or stack.enter_context(path.open("rb"))
        return np.memmap(file, np.uint8, "r", shape=shape)
