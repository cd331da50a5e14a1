"""Metrics into files: metrics.jsonl always, and TensorBoard's event files.

The methods are named as those of `clu.metric_writers.MetricWriter`, which cannot be
used itself because it imports TensorFlow.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
import tensorboardX
from jaxtyping import Float, UInt8

from jcm.data.images import to_uint8
from jcm.run.grids import grid
from jcm.runtime import files
from jcm.runtime.arrays import AnyArray
from jcm.runtime.errors import JcmError

Images = UInt8[AnyArray, "_n _h _w _c"] | Float[AnyArray, "_n _h _w _c"]


class MetricWriter:
    """Writes nothing; the other writers override what they can write."""

    def write_scalars(self, step: int, scalars: Mapping[str, SupportsFloat]) -> None:
        """Writes numbers, also 0-dimensional arrays."""

    def write_images(self, step: int, images: Mapping[str, Images]) -> None:
        """Writes each batch of images, uint8 or in [-1, 1], as one grid."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes texts in Markdown."""

    def close(self) -> None:
        """Makes sure that everything is in the files; nothing can follow."""


class JsonlWriter(MetricWriter):
    """Appends a line `{"step": 10, "loss": 0.5}` to a file per call.

    JSON has no numbers that are not finite: they are the strings "NaN", "Infinity"
    and "-Infinity", which `float()` understands. Each line is in the file at once.
    """

    def __init__(self, path: str | os.PathLike):
        self._file = Path(path).open("a", buffering=1, encoding="utf-8")

    def write_scalars(self, step: int, scalars: Mapping[str, SupportsFloat]) -> None:
        record: dict[str, Any] = {"step": step}
        record |= {name: _json_number(value) for name, value in scalars.items()}
        try:
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
        except OSError as error:
            raise JcmError(
                f"cannot write {self._file.name} ({error.strerror}): make room there"
                " and start again"
            ) from error

    def close(self) -> None:
        self._file.close()


class TensorBoardWriter(MetricWriter):
    """Writes TensorBoard's event files into a folder, in the background.

    A kill can cost the last half minute.

    Args:
        folder: Where.
        resume_step: TensorBoard hides what earlier event files say about later steps.
    """

    def __init__(self, folder: str | os.PathLike, *, resume_step: int | None = None):
        # TensorBoard purges from a step on, that step included.
        purge_step = None if resume_step is None else resume_step + 1
        self._folder = folder
        self._events = tensorboardX.SummaryWriter(
            str(folder), purge_step=purge_step, flush_secs=30
        )

    def write_scalars(self, step: int, scalars: Mapping[str, SupportsFloat]) -> None:
        self._check()
        for name, value in scalars.items():
            self._events.add_scalar(name, float(value), step)

    def write_images(self, step: int, images: Mapping[str, Images]) -> None:
        self._check()
        for name, batch in images.items():
            pixels = batch if batch.dtype == np.uint8 else to_uint8(batch)
            picture = grid(np.asarray(pixels))
            self._events.add_image(name, picture, step, dataformats="HWC")

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        self._check()
        for name, text in texts.items():
            self._events.add_text(name, text, step)

    def close(self) -> None:
        self._check()
        self._events.close()

    def _check(self) -> None:
        """A thread writes; once an error has ended it, its queue waits for ever."""
        if not self._events.file_writer.event_writer._worker.is_alive():
            raise JcmError(
                f"cannot write TensorBoard's event files in {self._folder}: make room"
                " there and start again"
            )


class MultiWriter(MetricWriter):
    """Hands everything to several writers in turn."""

    def __init__(self, writers: Sequence[MetricWriter]):
        self._writers = tuple(writers)

    def write_scalars(self, step: int, scalars: Mapping[str, SupportsFloat]) -> None:
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def write_images(self, step: int, images: Mapping[str, Images]) -> None:
        for writer in self._writers:
            writer.write_images(step, images)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        for writer in self._writers:
            writer.write_texts(step, texts)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


def create(
    workdir: str | os.PathLike,
    *,
    resume_step: int | None = None,
    enabled: bool = True,
) -> MetricWriter:
    """The writer of a run: metrics.jsonl and event files in its workdir.

    Close it whatever happens, best by `contextlib.closing`: event files are written
    in the background.

    Args:
        workdir: The run's folder; made if it does not exist.
        resume_step: The step of the checkpoint that the run goes on from. What was
            written about later steps is dropped, because it will be written again.
            None keeps everything, for an evaluation, which adds to it.
        enabled: False in all processes of a run but the first: the writer then
            writes nothing and touches no file.
    """
    if not enabled:
        return MetricWriter()
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "metrics.jsonl"
    _clean(path, math.inf if resume_step is None else resume_step)
    return MultiWriter(
        [JsonlWriter(path), TensorBoardWriter(workdir, resume_step=resume_step)]
    )


def has_scalars(workdir: str | os.PathLike, step: int, prefix: str) -> bool:
    """Whether metrics.jsonl has a number of this step whose name begins so."""
    path = Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return any(
            any(name.startswith(prefix) for name in json.loads(line))
            for line in file
            if _step(line) == step
        )


def _json_number(value: SupportsFloat) -> float | str:
    number = float(value)
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    return number


def _clean(path: Path, last_step: float) -> None:
    """Drops the lines of later steps, and what a kill has left half written."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        lines = list(file)
    kept = [line for line in lines if _step(line) <= last_step]
    if kept != lines:
        files.write_text(path, "".join(kept))


def _step(line: str) -> float:
    """The step that a line is about, or NaN if the line is not whole."""
    if not line.endswith("\n"):
        return math.nan
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.nan
