"""Saves and ends on SIGTERM and SIGINT.

Machines send SIGTERM before they are taken away. A terminal sends SIGINT on Ctrl-C.
"""

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, Self

import jax
import numpy as np
from jaxtyping import Int32

from jcm.runtime.errors import Preempted

SLOW, STOP = 1, 2
"""What a process adds to a batch: steps take long; a signal has come; 0 for neither."""

_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}
# A program that starts this one may pass on what the terminal sends to both, so a
# second Ctrl-C counts if it comes later than this.
_TWICE_SECONDS = 0.5
# The exit code of a program that SIGINT ends.
_INTERRUPTED = 128 + signal.SIGINT
# The time after which an exception that was lost is raised again.
_AGAIN_SECONDS = 0.05


class _Stopped(Preempted):
    """A signal has ended a program that has nothing to save.

    Attributes:
      number: that of the signal.
      resumes: whether the program resumes when it is started again.
    """

    resumes = True

    def __init__(self, number: int):
        then = "; the same command resumes from here" if self.resumes else ""
        super().__init__(f"stopped by {_NAMES[signal.Signals(number)]}{then}")
        self.number = number


def exit_on_signals(*, resumes: bool = True) -> None:
    """Makes SIGTERM and Ctrl-C end the program with the exit code of `Preempted`.

    Programs that evaluate or sample have nothing to save. They end as soon as Python
    runs. A second Ctrl-C ends the program at once, wherever it is. Call this in the
    main thread.

    Args:
      resumes: whether the program resumes when it is started again, for the message.
    """
    _Stopped.resumes = resumes
    for number in _NAMES:
        # A shell makes programs in the background ignore Ctrl-C.
        if signal.getsignal(number) != signal.SIG_IGN or number == signal.SIGTERM:
            signal.signal(number, _exit)
    _Interrupts.start_once()
    if not isinstance(sys.unraisablehook, _Again):
        sys.unraisablehook = _Again(sys.unraisablehook)


def _exit(number: int, frame: FrameType | None) -> None:
    ignore_signals()
    raise _Stopped(number)


def ignore_signals() -> None:
    """Makes signals change nothing in a program that is already ending.

    A second Ctrl-C still ends it at once.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            # Not SIG_IGN, which would also stop the signals to `_Interrupts`.
            signal.signal(signal.SIGINT, _nothing)


def _nothing(number: int, frame: FrameType | None) -> None:
    pass


class _Again:
    """Raises `_Stopped` again if Python has ignored it.

    It ignores exceptions in callbacks, such as those that JAX registers for garbage
    collection, and in destructors.
    """

    def __init__(self, before: Any):
        """Takes the hook for all other exceptions."""
        self._before = before

    def __call__(self, lost: Any) -> None:
        if not isinstance(lost.exc_value, _Stopped):
            self._before(lost)
            return
        number, main = lost.exc_value.number, threading.main_thread().ident
        # SIGTERM also for Ctrl-C, of which a second one would end the program at once.
        signal.signal(signal.SIGTERM, lambda *_: _exit(number, None))
        again = threading.Timer(
            _AGAIN_SECONDS, signal.pthread_kill, [main, signal.SIGTERM]
        )
        again.daemon = True
        again.start()


class _Interrupts(threading.Thread):
    """Ends the program at the second Ctrl-C.

    Python handles a signal in the main thread, and only once that is not inside of
    another library: after the step of a training, or after a compilation. This thread
    sees it at once.
    """

    _started = False

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._received, sent = os.pipe()
        os.set_blocking(sent, False)
        signal.set_wakeup_fd(sent, warn_on_full_buffer=False)

    @classmethod
    def start_once(cls) -> None:
        """Starts the thread, unless it runs."""
        if not cls._started:
            cls._started = True
            cls().start()

    def run(self) -> None:
        """Reads the numbers of the signals that the process receives."""
        first = None
        while number := os.read(self._received, 1):
            if number[0] != signal.SIGINT:
                continue
            now = time.monotonic()
            if first is None:
                first = now
                _say("Ctrl-C: stopping; press it again to stop at once")
            elif now - first >= _TWICE_SECONDS:
                _say("stopped at once by a second Ctrl-C")
                os._exit(_INTERRUPTED)


def _say(text: str) -> None:
    """Writes a line to stderr, also while the main thread does."""
    os.write(2, f"jcm: {text}\n".encode())


class Watch:
    """A context that records SIGTERM and SIGINT, so that training can save and end.

    If the block ends with `Preempted`, signals are ignored from then on, so that the
    program can clean up. Outside of a program that called `exit_on_signals`, a second
    SIGINT is handled as it would be without the watch: it raises KeyboardInterrupt.

    In a run of several processes, any of them may receive the signal at any time, and
    all must save the same step. Each process therefore adds a number to every batch,
    and the training step returns their maximum to all; see `STOP`.
    """

    def __init__(self) -> None:
        """Creates a watch, which records nothing until it is entered."""
        # The numbers of the signals that have come.
        self._received: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        outer = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        if isinstance(outer, Watch):  # of a run inside which this one is trained
            self._received = outer._received
            return self
        for number in _NAMES:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        if kind is not None and issubclass(kind, Preempted):
            if _exit in self._before.values():
                ignore_signals()
        elif kind is None and self._before and self._received:
            signal.raise_signal(self._received[0])  # the block has not acted on it

    @property
    def received(self) -> bool:
        """Whether a signal has come to this process."""
        return bool(self._received)

    @property
    def cause(self) -> str:
        """What has asked to stop, such as "SIGTERM"."""
        if not self._received:
            return "a signal to another process"
        return _NAMES[signal.Signals(self._received[0])]

    def notice(self, *, slow: bool) -> Int32[np.ndarray, " devices"]:
        """Returns what this process adds to a batch, for each of its devices.

        Args:
          slow: whether steps take long.
        """
        value = STOP if self.received else SLOW if slow else 0
        return np.full(jax.local_device_count(), value, np.int32)

    def _note(self, number: int, frame: FrameType | None) -> None:
        before = self._before[number]
        is_second = number == signal.SIGINT and number in self._received
        self._received.append(number)
        if is_second and before is not _exit and callable(before):
            before(number, frame)
