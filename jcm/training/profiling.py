"""A trace of a few training steps, for the profiler of TensorBoard or Perfetto."""

import os
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging

from jcm.runtime.errors import JcmError


class Profile:
    """Traces from the start of one step to the end of another; steps count from 1."""

    def __init__(self, steps: Sequence[int], folder: str | os.PathLike):
        """Traces nothing yet.

        Args:
          steps: `config.profile.steps`: (first, last), or () for no trace.
          folder: the folder for the trace, which process 0 writes.

        Raises:
          JcmError: if `steps` is anything else.
        """
        valid = len(steps) == 2 and 1 <= steps[0] <= steps[1]
        if steps and not valid:
            raise JcmError(
                f"config.profile.steps={tuple(steps)} must be (FIRST, LAST), from 1"
            )
        self._first, self._last = steps or (0, 0)
        self._folder = str(folder)
        self._running = False

    def before(self, step: int) -> None:
        """Starts the trace if this step is the first to trace."""
        if self._first <= step <= self._last and not self._running:
            if jax.process_index() == 0:
                jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, result: Any) -> None:
        """Ends the trace after the last step to trace.

        Args:
          step: the step that was dispatched.
          result: the arrays that it returns, to wait for.
        """
        if self._running and step >= self._last:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends a trace that is still running."""
        if not self._running:
            return
        self._running = False
        self._first = self._last = 0
        if jax.process_index() == 0:
            jax.profiler.stop_trace()
            logging.info("wrote a profile to %s", self._folder)
