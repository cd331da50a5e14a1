"""A trace of some training steps, for TensorBoard's profiler or Perfetto."""

import os
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging

from jcm.runtime.errors import JcmError


class Profile:
    """Traces from the start of one step to the end of another, both counted from 1."""

    def __init__(self, steps: Sequence[int], folder: str | os.PathLike):
        """Traces nothing yet.

        Args:
          steps: of config.profile: (first, last), or nothing.
          folder: for the trace; that of one process is enough.

        Raises:
          JcmError: where `steps` is something else.
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
        """Tells that a step begins."""
        if self._first <= step <= self._last and not self._running:
            if jax.process_index() == 0:
                jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, result: Any) -> None:
        """Tells that a step was sent off, and what it gives."""
        if self._running and step >= self._last:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Writes what there is."""
        if not self._running:
            return
        self._running = False
        self._first = self._last = 0
        if jax.process_index() == 0:
            jax.profiler.stop_trace()
            logging.info("wrote a profile to %s", self._folder)
