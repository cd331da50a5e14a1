"""Saves and ends on SIGTERM, which machines get before they are taken away."""

import signal
import threading
from types import FrameType
from typing import Any, Self

import jax
import numpy as np
from jaxtyping import Int32

from jcm.runtime.errors import Preempted


def exit_on_sigterm() -> None:
    """Makes SIGTERM end the program at once, with the exit code of `Preempted`.

    Programs that evaluate or sample have nothing to save.
    """
    signal.signal(signal.SIGTERM, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    ignore_sigterm()
    raise Preempted("stopped by SIGTERM; the same command resumes from here")


def ignore_sigterm() -> None:
    """Makes SIGTERM change nothing, for a program that is already ending."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Watch:
    """A context that records SIGTERM, so that training can save before it ends.

    If the block ends with `Preempted`, SIGTERM is ignored from then on, so that the
    program can clean up.

    In a run of several processes, any of them may receive the signal at any time, and
    all must save the same step. Each process therefore adds `flags` to every batch, and
    the training step returns their maximum to all.
    """

    def __init__(self) -> None:
        """Creates a watch, which records nothing until it is entered."""
        self._received = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
            # A run inside another run takes over a signal that the outer one received.
            outer = getattr(self._before, "__self__", None)
            self._received = isinstance(outer, Watch) and outer._received
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if self._before is not None:
            preempted = kind is not None and issubclass(kind, Preempted)
            ignore = preempted and self._before is _exit
            signal.signal(signal.SIGTERM, signal.SIG_IGN if ignore else self._before)
            if self._received and kind is None:
                signal.raise_signal(signal.SIGTERM)  # the block has not acted on it

    def flags(self) -> Int32[np.ndarray, " devices"]:
        """Returns for each device of this process whether SIGTERM has come."""
        return np.full(jax.local_device_count(), self._received, np.int32)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = True
