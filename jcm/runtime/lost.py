"""Explains why a run ends if one of its processes is lost.

JAX notices that a process is lost, and aborts all others, which do not say which one it
was. What this file notices ends nothing: a process that is busy may be silent.
"""

import contextlib
import ctypes
import glob
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

EXIT_CODE = 128 + signal.SIGABRT
"""What a shell sees after an abort by JAX; launchers then start the run again."""

_LINE = (
    "was lost (it gives no sign of life; see its own log): all processes end, and the"
    " same commands resume the run"
)
_KEY, _SILENT = "jcm/alive", "jcm/silent"
_EVERY_SECONDS = 5
# A request that takes longer may wait for a thread in which JAX aborts this process.
_LONG_SECONDS = 1


class Signs:
    """The signs of life of all processes, which process 0 watches.

    A thread of Python gives them. It gives none while another thread computes without
    releasing the interpreter. JAX's own signs do not depend on Python.
    """

    def __init__(self, client: Any, process: int, count: int, timeout: float):
        """Creates the signs; all processes are alive now.

        Args:
          client: of JAX's coordination service.
          process: the index of this process.
          count: the number of processes.
          timeout: seconds without a sign of JAX after which JAX ends all processes.
        """
        self._client, self._process = client, process
        # JAX gives a sign in every half of its timeout, and counts from the last one.
        # All processes know before that which one is silent.
        self._timeout = timeout / 4
        self._every = min(_EVERY_SECONDS, self._timeout / 4)
        self._last = dict.fromkeys(range(count), ("", time.monotonic()))
        self._given = self._watched = -math.inf
        self._silent: int | None = None

    def exchange(self) -> str:
        """Gives a sign of life, if it is time; returns who is lost if JAX aborts now.

        Process 0, in which JAX's service runs, informs the others of a silent process.
        """
        now = time.monotonic()
        if now - self._given >= self._every:
            self._given = now
            self._client.key_value_set(f"{_KEY}/{self._process}", str(now), True)
            before = self._silent
            if self._process == 0:
                self._silent = self._watch()
                if self._silent != before:
                    text = "" if self._silent is None else str(self._silent)
                    self._client.key_value_set(f"{_SILENT}/process", text, True)
            else:
                found = dict(self._client.key_value_dir_get(_SILENT)).values()
                self._silent = next((int(text) for text in found if text), None)
        if self._silent is not None:
            return f"process {self._silent}"
        return "process 0, or the connection to it," if self._process else "a process"

    def _watch(self) -> int | None:
        """Returns a process that is silent; None if there is none.

        A process that was halted itself cannot know how long the others were silent.
        """
        found = self._client.key_value_dir_get(_KEY)
        now, before = time.monotonic(), self._watched
        self._watched = now
        halted = now - before > 2 * _EVERY_SECONDS
        for name, sign in found:
            process = int(name.rpartition("/")[2])
            if halted or self._last[process][0] != sign:
                self._last[process] = sign, now
        ages = {process: now - last for process, (_, last) in self._last.items()}
        oldest = max(ages, key=lambda process: ages[process])
        return oldest if ages[oldest] > self._timeout else None


class _Action(ctypes.Structure):
    """How Linux handles a signal; `struct sigaction` of its C libraries."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_uint64 * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


class Aborts:
    """Explains an abort by JAX, which comes if a process is lost.

    A request to the coordination service then waits for the thread in which JAX aborts
    the process. There is an explanation on Linux only.

    Attributes:
      who: which process is lost if JAX aborts this one.
    """

    def __init__(self) -> None:
        """Delays aborts from now on, so that there is time to explain them.

        The handler of the signal is a function of the system, sleep(), which takes the
        number of the signal as seconds: Python may be unable to run in that thread.
        Meanwhile the thread blocks another signal, by which `_aborts` recognises it.
        """
        self.who = "a process"
        self._since = math.inf
        if sys.platform == "linux":
            system = ctypes.CDLL(None)
            mask = (ctypes.c_uint64 * 16)(_bit(_mark()))
            handler = ctypes.cast(system.sleep, ctypes.c_void_p)
            action = _Action(handler, mask, 0, None)
            system.sigaction(signal.SIGABRT, ctypes.byref(action), None)
            threading.Thread(target=self._watch, daemon=True).start()

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Explains an abort during this block, which makes requests."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = math.inf

    def _watch(self) -> None:
        while True:
            time.sleep(_LONG_SECONDS)
            if time.monotonic() - self._since > _LONG_SECONDS and _aborts():
                os.write(2, f"jcm: {self.who} {_LINE}\n".encode())
                os._exit(EXIT_CODE)


def _aborts() -> bool:
    """Returns whether a thread is in the handler of SIGABRT.

    Threads of libraries may block signals as well, but none blocks only the first of
    two that nothing uses.
    """
    for path in glob.glob("/proc/self/task/*/status"):
        with contextlib.suppress(OSError), open(path) as file:
            for line in file:
                if line.startswith("SigBlk:"):
                    blocked, mark = int(line.split()[1], 16), _mark()
                    if blocked & _bit(mark) and not blocked & _bit(mark + 1):
                        return True
    return False


def _mark() -> int:
    """Returns the number of a signal that nothing uses, nor the next one."""
    return signal.SIGRTMAX - 2


def _bit(number: int) -> int:
    """Returns the bit of a signal in a mask."""
    return 1 << (number - 1)
