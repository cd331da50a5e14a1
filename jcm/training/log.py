"""Metrics of training, read one step late."""

import math

import jax
from absl import logging

from jcm.run.progress import Progress
from jcm.run.writers import MetricWriter
from jcm.runtime.errors import JcmError
from jcm.training.step import Metrics


class TrainLog:
    """Reads each step's metrics after the next is sent off: no device ever waits.

    Attributes:
      stop: whether any process was told to save and leave; see `preemption.Watch`.
    """

    def __init__(
        self,
        writer: MetricWriter,
        progress: Progress,
        every: int,
        skip_nonfinite: int = 0,
    ):
        """Writes the mean loss and the other metrics' latest values.

        Beside them: `data_wait_secs`, the mean time that a step waited for its batch,
        and `skipped`, how many steps since the last writing changed nothing.

        Args:
          writer: takes the numbers.
          progress: shows them to whoever watches.
          every: steps between two writings.
          skip_nonfinite: steps in a row whose gradient may be not finite; those steps
            must have changed nothing.
        """
        self._writer, self._progress, self._every = writer, progress, every
        self._limit = skip_nonfinite
        self._in_a_row = self._skipped = 0
        self.stop = False
        self._pending: tuple[int, Metrics] | None = None
        self._losses: list[float] = []
        self._waits: list[float] = []

    def add(self, step: int, metrics: Metrics, waited: float = 0.0) -> None:
        """Takes the metrics of the step just sent off and settles the one before.

        Args:
          step: its number, from 1.
          metrics: what it gives.
          waited: seconds that its batch was waited for.
        """
        self.settle()
        self._pending = step, metrics
        self._waits.append(waited)

    def settle(self) -> None:
        """Waits for the last step and writes its metrics where they are due.

        Raises:
          JcmError: where loss or gradient is not finite, more often than allowed.
        """
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        metrics = {
            name: float(value) for name, value in jax.device_get(metrics).items()
        }
        # A whole number of every process: all stop at the same step.
        self.stop |= metrics.pop("stop") > 0
        loss = metrics["loss"]
        watched = {name: metrics[name] for name in ("loss", "grad_norm", "param_norm")}
        if all(map(math.isfinite, watched.values())):
            self._in_a_row = 0
            self._losses.append(loss)
        else:
            self._pass_over(step, watched)
        speed = self._progress.update(step, loss)
        if step % self._every == 0:
            numbers = {
                "loss": _mean(self._losses),
                "data_wait_secs": _mean(self._waits),
            }
            if self._limit:
                numbers["skipped"] = self._skipped
            self._skipped = 0
            self._losses.clear()
            self._waits.clear()
            self._writer.write_scalars(step, metrics | numbers | speed)

    def _pass_over(self, step: int, watched: dict[str, float]) -> None:
        """Counts a step that is not finite, or ends the run."""
        self._in_a_row += 1
        self._skipped += 1
        values = ", ".join(f"{name} {value}" for name, value in watched.items())
        if self._in_a_row <= self._limit and math.isfinite(watched["param_norm"]):
            logging.warning(
                "step %d: %s: passed over, %d in a row", step, values, self._in_a_row
            )
            return
        raise JcmError(
            f"step {step}: {values}: stopped, and the last checkpoint kept; begin"
            " another --workdir with --config.optim.grad_clip=1.0 or a lower"
            " --config.optim.learning_rate, or pass over single ones by"
            " --config.train.skip_nonfinite=10"
        )


def _mean(values: list[float]) -> float:
    """Not a number where there are none."""
    return sum(values) / len(values) if values else math.nan
