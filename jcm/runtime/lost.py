"""Notices that a process of a run is lost, and says so before the others end.

JAX notices it too, but ends the others by an abort without an explanation.
"""

import contextlib
import ctypes
import glob
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

EXIT_CODE = 128 + signal.SIGABRT
"""What a shell sees after an abort by JAX; launchers then start the run again."""
LINE = (
    "was lost (it gives no sign of life; see its own log): all processes end, and the"
    " same commands resume the run"
)
"""The end of the line about a lost process."""

_KEY = "jcm/alive"
_EVERY_SECONDS = 5
# A request that takes longer may wait for a thread in which JAX aborts this process.
_LONG_SECONDS = 1


class Signs:
    """The signs of life of all processes, which process 0 watches."""

    def __init__(self, client: Any, process: int, count: int, timeout: float):
        """Creates the signs; all processes are alive now.

        Args:
          client: of JAX's coordination service.
          process: the index of this process.
          count: the number of processes.
          timeout: seconds without a sign after which a process is lost.
        """
        self._client, self._process, self._timeout = client, process, timeout
        self._every = min(_EVERY_SECONDS, timeout / 4)
        self._last = dict.fromkeys(range(count), ("", time.monotonic()))
        self._given = self._watched = -math.inf

    def give(self) -> None:
        """Gives a sign of life of this process, if it is time for one."""
        now = time.monotonic()
        if now - self._given >= self._every:
            self._given = now
            self._client.key_value_set(f"{_KEY}/{self._process}", str(now), True)

    def missing(self) -> int | None:
        """Returns a process that is lost; None if there is none, or not in process 0.

        A process that was halted itself cannot know how long the others were silent.
        """
        if self._process != 0:
            return None
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


class Aborts:
    """Explains an abort by JAX, which comes at once if process 0 is lost.

    A request to the coordination service then waits for the thread in which JAX aborts
    the process. On systems without /proc there is no explanation.
    """

    def __init__(self) -> None:
        """Delays aborts from now on, so that there is time to explain them.

        The handler of the signal is a function of the system, sleep(), which takes the
        number of the signal as seconds: Python may be unable to run in that thread.
        """
        system = ctypes.CDLL(None)
        system.signal(signal.SIGABRT, ctypes.cast(system.sleep, ctypes.c_void_p))
        self._since = math.inf
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
                text = f"jcm: process 0, or the connection to it, {LINE}\n"
                os.write(2, text.encode())
                os._exit(EXIT_CODE)


def _aborts() -> bool:
    """Returns whether a thread handles SIGABRT, which the system blocks meanwhile."""
    for path in glob.glob("/proc/self/task/*/status"):
        with contextlib.suppress(OSError), open(path) as file:
            for line in file:
                if line.startswith("SigBlk:"):
                    blocked = int(line.split()[1], 16)
                    if blocked >> (signal.SIGABRT - 1) & 1:
                        return True
    return False
