"""Writes metrics to metrics.jsonl and to TensorBoard's event files.

The methods have the names of those of `clu.metric_writers.MetricWriter`, which cannot
be used here because it imports TensorFlow.
"""

import contextlib
import json
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import GenericAlias
from typing import Any, SupportsFloat, TypeVar

import msgspec
import numpy as np
import tensorboardX
from jaxtyping import Float, UInt8

from jcm.data.images import to_uint8
from jcm.run.grids import grid
from jcm.runtime import disk, files, json_files, logs
from jcm.runtime.arrays import AnyArray
from jcm.runtime.errors import JcmError

Images = UInt8[AnyArray, "_n _h _w _c"] | Float[AnyArray, "_n _h _w _c"]
_Kind = TypeVar("_Kind")


class _Step(msgspec.Struct):
    """What is read of a line of metrics.jsonl to compare its step."""

    step: float


class MetricWriter:
    """Writes nothing; a subclass overrides the methods for what it can write."""

    def write_scalars(self, step: int, scalars: Mapping[str, SupportsFloat]) -> None:
        """Writes numbers or 0-dimensional arrays by name."""

    def write_images(self, step: int, images: Mapping[str, Images]) -> None:
        """Writes each batch of images, uint8 or float in [-1, 1], as one grid."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes Markdown texts by name."""

    def close(self) -> None:
        """Writes everything to the files and closes them."""


class JsonlWriter(MetricWriter):
    """Appends a line such as `{"step": 10, "loss": 0.5}` to a file at each call.

    JSON has no infinite numbers or NaN. They are written as the strings "NaN",
    "Infinity" and "-Infinity", which `float()` reads. Lines are not buffered.
    """

    def __init__(self, path: str | os.PathLike):
        # Not buffered, so that closing it after an error does not write.
        with disk.writing(path):
            self._file = Path(path).open("ab", buffering=0)

    def write_scalars(self, step: int, scalars: Mapping[str, SupportsFloat]) -> None:
        record: dict[str, Any] = {"step": step}
        record |= {name: _json_number(value) for name, value in scalars.items()}
        with disk.writing(self._file.name):
            self._file.write(f"{json.dumps(record, allow_nan=False)}\n".encode())
            # A folder that was deleted takes what is written, and loses it.
            os.stat(self._file.name)

    def close(self) -> None:
        self._file.close()


class TensorBoardWriter(MetricWriter):
    """Writes TensorBoard's event files in the background.

    A kill can lose the last half minute.

    Args:
        folder: The folder of the event files.
        resume_step: TensorBoard hides what earlier event files hold of later steps.
    """

    def __init__(self, folder: str | os.PathLike, *, resume_step: int | None = None):
        # TensorBoard hides the purge step and all later ones.
        purge_step = None if resume_step is None else resume_step + 1
        self._folder = folder
        with disk.writing(os.path.join(folder, "events")):
            self._events = tensorboardX.SummaryWriter(
                str(folder), purge_step=purge_step, flush_secs=30
            )
        self._worker = self._events.file_writer.event_writer._worker

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
        try:
            self._events.close()
        except OSError as error:
            raise self._failed(error) from error

    def _check(self) -> None:
        """Checks that the thread that writes is alive.

        After an error has ended it, a call would wait forever. If a signal interrupts
        `is_alive`, Python marks a thread that runs as ended, so that is not used.

        Raises:
            JcmError: if an error has ended it.
        """
        if self._worker not in threading.enumerate():
            raise self._failed(logs.error_of(self._worker))

    def _failed(self, error: BaseException | None) -> JcmError:
        """Returns the error for files that cannot be written.

        The writer is not used any more. Otherwise it would try to write again when the
        program ends, or wait for the thread that has ended.
        """
        writer = self._events.file_writer.event_writer
        if not writer._closed:
            writer._closed = True
            writer._event_queue.cancel_join_thread()
        what = f"cannot write TensorBoard's event files in {self._folder}"
        return disk.cannot_write(os.path.join(self._folder, "events"), error, what)


class MultiWriter(MetricWriter):
    """Passes everything to several writers in turn."""

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
    """Returns the writer of a run: metrics.jsonl and event files in its workdir.

    Close it also after an error, for example with `contextlib.closing`, since event
    files are written in the background.

    Args:
        workdir: The run's folder; it is created if it does not exist.
        resume_step: The step of the checkpoint that the run resumes from. What was
            written for later steps is removed, since it will be written again. None
            keeps everything, for an evaluation, which adds to it.
        enabled: Whether to write; set it in process 0 only.

    Raises:
        JcmError: if metrics.jsonl cannot be rewritten.
    """
    if not enabled:
        return MetricWriter()
    workdir = Path(workdir)
    with disk.writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "metrics.jsonl"
    _clean(path, math.inf if resume_step is None else resume_step)
    return MultiWriter(
        [JsonlWriter(path), TensorBoardWriter(workdir, resume_step=resume_step)]
    )


def has_scalars(workdir: str | os.PathLike, step: int, prefix: str) -> bool:
    """Returns whether metrics.jsonl has a number of a step whose name has a prefix."""
    written = str(step).encode()
    return any(
        line
        and bytes(line.get("step", b"")) == written
        and any(name.startswith(prefix) for name in line)
        for line in _lines(Path(workdir) / "metrics.jsonl", dict[str, msgspec.Raw])
    )


def _json_number(value: SupportsFloat) -> float | str:
    number = float(value)
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    return number


def _clean(path: Path, last_step: float) -> None:
    """Removes the lines of later steps, and a last line that is incomplete.

    Lines that are damaged or written by others stay.
    """
    # The file of a long run may be larger than the memory.
    kept = bytearray(
        line is None or line.step <= last_step for line in _lines(path, _Step)
    )
    if kept and not _is_complete(path):
        kept[-1] = False
    if not all(kept):
        with files.replacing(path) as temporary, temporary.open("wb") as file:
            number = 0
            for piece in json_files.pieces(path):
                if kept[number]:
                    file.write(piece)
                number += piece.endswith(b"\n")


def _is_complete(path: Path) -> bool:
    """Returns whether the last line of a file has an end."""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _lines(path: Path, kind: type[_Kind] | GenericAlias) -> Iterator[_Kind | None]:
    """Yields each line of metrics.jsonl, and None for one that is damaged.

    Raises:
      JcmError: if there is something else in place of the file.
    """
    with contextlib.suppress(FileNotFoundError):
        yield from json_files.lines(path, kind)
