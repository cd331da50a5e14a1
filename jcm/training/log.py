"""The log of training, which reads the metrics of each step one step late."""

import math
import time
from typing import Annotated, Any, Self

import jax
import msgspec
from absl import logging

from jcm.run.progress import Progress
from jcm.run.writers import MetricWriter
from jcm.runtime import preemption
from jcm.runtime.errors import JcmError, one_line
from jcm.training.step import Metrics

_WAIT = "data_wait_secs"
# A step that takes longer is settled before the next is dispatched.
_LONG_SECONDS = 1.0
_Count = Annotated[int, msgspec.Meta(ge=0)]


class Window(msgspec.Struct):
    """What has been logged since the last entry.

    A checkpoint between two entries holds it, so that the next entry of a run that is
    resumed covers the same steps as that of a run that was not stopped.

    Attributes:
      totals: by name, the sum of a value and the number of steps or examples that had
        one. A mean is one divided by the other.
      skipped: the number of steps that changed nothing.
      in_a_row: the number of steps up to the last that changed nothing.
    """

    totals: dict[str, tuple[float, float]] = {}
    skipped: _Count = 0
    in_a_row: _Count = 0

    @classmethod
    def of(cls, saved: Any, where: str) -> Self:
        """Returns the window that a checkpoint holds.

        Args:
          saved: what `TrainLog.window` was, as JSON.
          where: the checkpoint, for the error.

        Raises:
          JcmError: if it is something else.
        """
        try:
            return msgspec.convert(saved, cls)
        except msgspec.ValidationError as error:
            raise JcmError(
                f"{where} holds no sums of the log ({one_line(error, 120)}): move this"
                " step away to resume from the one before"
            ) from error

    def add(self, name: str, total: float, count: float = 1) -> None:
        """Adds the sum of a value in `count` steps or examples."""
        so_far = self.totals.get(name, (0.0, 0.0))
        self.totals[name] = so_far[0] + total, so_far[1] + count


class TrainLog:
    """Reads the metrics of a step once the next is dispatched, so no device waits.

    Attributes:
      stop: whether any process had been asked to stop when the last settled step
        began; see `preemption.Watch`.
      takes_long: whether the last step took this process long.
      settles_first: whether a step should be settled before the next is dispatched. It
        is the same in every process. A device then waits for milliseconds, and a run
        that is asked to stop stops after the step in flight and not after the next.
    """

    def __init__(
        self,
        writer: MetricWriter,
        progress: Progress,
        every: int,
        skip_nonfinite: int = 0,
        window: Window | None = None,
    ):
        """Writes means since the last entry, and the latest value of other metrics.

        The loss and the numbers that the method logs are means. It also writes
        `data_wait_secs`, the mean time that a step waited for its batch, and `skipped`,
        the number of steps since the last entry that changed nothing.

        Args:
          writer: takes the numbers.
          progress: reports the speed.
          every: steps between two entries.
          skip_nonfinite: the number of consecutive steps that may have a loss or
            gradient that is not finite. Such steps must have changed nothing.
          window: what the checkpoint holds that the run resumes from.
        """
        self._writer, self._progress, self._every = writer, progress, every
        self._limit = skip_nonfinite
        self._window = window or Window()
        self.stop = False
        self.takes_long = self.settles_first = True  # until a step has been timed
        self._settled_at: float | None = None
        self._pending: tuple[int, Metrics] | None = None

    @property
    def window(self) -> dict[str, Any]:
        """What to save with the state after the last settled step, as JSON."""
        return msgspec.to_builtins(self._window)

    def add(self, step: int, metrics: Metrics, waited: float = 0.0) -> None:
        """Takes the metrics of a dispatched step and settles the step before.

        Args:
          step: the number of the step, from 1.
          metrics: the metrics that it returns.
          waited: seconds that the step waited for its batch.
        """
        self.settle()
        self._pending = step, metrics
        self._window.add(_WAIT, waited)

    def settle(self) -> None:
        """Waits for the last step, and writes its metrics if an entry is due.

        Raises:
          JcmError: if more consecutive steps than allowed were not finite.
        """
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        found = jax.tree.map(float, jax.device_get(metrics))
        logs = found.pop("logs", {})
        metrics = found
        # Every process sees the same value, so all stop after the same step.
        notice = metrics.pop("notice")
        self.stop |= notice == preemption.STOP
        self.settles_first = notice != 0
        now, before = time.monotonic(), self._settled_at
        self.takes_long = before is None or now - before > _LONG_SECONDS
        self._settled_at = now
        loss = metrics["loss"]
        watched = {name: metrics[name] for name in ("loss", "grad_norm", "param_norm")}
        window = self._window
        if all(map(math.isfinite, watched.values())):
            window.in_a_row = 0
            window.add("loss", loss)
            for name, (total, count) in logs.items():
                window.add(name, total, count)
        else:
            self._skip(step, watched)
        speed = self._progress.update(step, loss, metrics["learning_rate"])
        if step % self._every == 0:
            self._window = Window(in_a_row=window.in_a_row)
            self._writer.write_scalars(step, metrics | self._numbers(window) | speed)

    def _numbers(self, window: Window) -> dict[str, float]:
        """Returns the numbers of an entry that cover all of its steps."""
        numbers = {"loss": math.nan}
        if self._limit:
            numbers["skipped"] = window.skipped
        for name, (total, count) in window.totals.items():
            if count and math.isfinite(total):
                numbers[name] = total / count
        return numbers

    def _skip(self, step: int, watched: dict[str, float]) -> None:
        """Counts a step that is not finite, or stops the run."""
        window = self._window
        window.in_a_row += 1
        window.skipped += 1
        values = ", ".join(f"{name} {value}" for name, value in watched.items())
        if window.in_a_row <= self._limit and math.isfinite(watched["param_norm"]):
            logging.warning(
                "step %d: %s: skipped, %d in a row", step, values, window.in_a_row
            )
            return
        raise JcmError(
            f"step {step}: {values}: stopped; the last checkpoint is kept. Start in"
            " another workdir with config.optim.grad_clip=1.0 or a lower"
            " config.optim.learning_rate, or skip single steps with"
            " config.train.skip_nonfinite=10"
        )
