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
        loss, grad_norm = metrics["loss"], metrics["grad_norm"]
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise JcmError(
                f"step {step}: loss {loss}, gradient norm {grad_norm}: stopped, and the"
                " last checkpoint kept; lower --config.optim.learning_rate, or set"
                " --config.optim.grad_clip=1.0"
            )
        self._losses.append(loss)
        speed = self._progress.update(step, loss)
        if step % self._every == 0:
            mean = sum(self._losses) / len(self._losses)
            self._losses.clear()
            self._writer.write_scalars(step, metrics | {"loss": mean} | speed)
