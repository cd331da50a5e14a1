"""SIGTERM: the machine is about to be taken away, so save and leave."""

import signal
import threading
from types import FrameType
from typing import Any, Self

import jax
import numpy as np
from jaxtyping import Int32

from jcm.runtime.errors import Preempted


def exit_on_sigterm() -> None:
    """From now on SIGTERM ends the program at once, with the exit code of `Preempted`.

    What only evaluates or samples has nothing to save.
    """
    signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    ignore_sigterm()
    raise Preempted("stopped by SIGTERM; the same command goes on from here")


def ignore_sigterm() -> None:
    """From now on SIGTERM changes nothing: the program is leaving already."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Watch:
    """Within, SIGTERM waits until it is looked at, however often it comes.

    A program that leaves by `Preempted` is not told again: it tidies up.

    In a run of several processes any of them may get the signal, at any time, and all
    must save the same step. So each adds a flag to every batch; the training step
    gives the largest back to all.
    """

    def __init__(self):
        """Nothing is watched before it is entered."""
        self._received = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
            # A run inside of a run hears what the other was told.
            outer = getattr(self._before, "__self__", None)
            self._received = isinstance(outer, Watch) and outer._received
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if self._before is not None:
            leaves = kind is not None and issubclass(kind, Preempted)
            told = leaves and self._before is _leave
            signal.signal(signal.SIGTERM, signal.SIG_IGN if told else self._before)
            if self._received and kind is None:
                signal.raise_signal(signal.SIGTERM)  # nobody has heard it yet

    def flags(self) -> Int32[np.ndarray, " devices"]:
        """Whether the signal has come, for each device of this process."""
        return np.full(jax.local_device_count(), self._received, np.int32)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = True
