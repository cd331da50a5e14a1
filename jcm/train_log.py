"""Metrics of training, read one step late."""

import math

import jax

from jcm.errors import JcmError
from jcm.progress import Progress
from jcm.step import Metrics
from jcm.writers import MetricWriter


class TrainLog:
    """Reads each step's metrics after the next is sent off: no device ever waits."""

    def __init__(self, writer: MetricWriter, progress: Progress, every: int):
        """Writes the mean loss and the other metrics' latest values.

        Args:
          writer: takes the numbers.
          progress: shows them to whoever watches.
          every: steps between two writings.
        """
        self._writer, self._progress, self._every = writer, progress, every
        self._pending: tuple[int, Metrics] | None = None
        self._losses: list[float] = []

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of the step just sent off and settles the one before."""
        self.settle()
        self._pending = step, metrics

    def settle(self) -> None:
        """Waits for the last step and writes its metrics where they are due.

        Raises:
          JcmError: where loss or gradient is not finite.
        """
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        metrics = {
            name: float(value) for name, value in jax.device_get(metrics).items()
        }
        loss = metrics["loss"]
        watched = {name: metrics[name] for name in ("loss", "grad_norm", "param_norm")}
        if not all(map(math.isfinite, watched.values())):
            values = ", ".join(f"{name} {value}" for name, value in watched.items())
            raise JcmError(
                f"step {step}: {values}: stopped, and the last checkpoint kept; begin"
                " another --workdir with --config.optim.grad_clip=1.0 or a lower"
                " --config.optim.learning_rate"
            )
        self._losses.append(loss)
        speed = self._progress.update(step, loss)
        if step % self._every == 0:
            mean = sum(self._losses) / len(self._losses)
            self._losses.clear()
            self._writer.write_scalars(step, metrics | {"loss": mean} | speed)
