"""SIGTERM: the machine is about to be taken away, so save and leave."""

import signal
import threading
from types import FrameType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jcm.errors import Preempted


def leave_on_sigterm() -> None:
    """From now on SIGTERM ends the program at once, with the exit code of `Preempted`.

    What only evaluates or samples has nothing to save.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise Preempted("stopped by SIGTERM; the same command goes on from here")

    signal.signal(signal.SIGTERM, leave)


class Watch:
    """Within, SIGTERM waits until it is asked for, however often it comes.

    In a run of several processes any of them may get the signal, at any step; all
    learn of it at the same step, one later, from a sum that no device waits for.
    """

    def __init__(self, mesh: Mesh):
        """Nothing is watched before it is entered.

        Args:
          mesh: of all devices of all processes.
        """
        self._received = False
        self._before: Any = None
        self._pending: jax.Array | None = None
        everywhere = NamedSharding(mesh, PartitionSpec())
        self._flags = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(jnp.max, out_shardings=everywhere)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def __call__(self) -> bool:
        """Whether to save and leave; every process must ask at every step."""
        if jax.process_count() == 1:
            return self._received
        mine = np.full(jax.local_device_count(), self._received, np.int32)
        flags = jax.make_array_from_process_local_data(self._flags, mine)
        before, self._pending = self._pending, self._any(flags)
        return before is not None and bool(before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = True
