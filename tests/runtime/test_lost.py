"""Tests of how the loss of a process is explained; `test_processes.py` loses some."""

import faulthandler
import signal
import subprocess
import sys
import threading

import pytest

from jcm.runtime import lost

_ABORTS = """
import ctypes, threading, time
from jcm.runtime import lost
aborts = lost.Aborts()
aborts.who = "process 3"
with aborts.explained():
    threading.Thread(target=ctypes.CDLL(None).abort).start()
    time.sleep(30)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_an_abort_is_explained():
    done = subprocess.run(
        [sys.executable, "-c", _ABORTS],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 134 == lost.EXIT_CODE
    assert done.stderr.startswith("jcm: process 3 was lost (it gives no sign")


def test_threads_that_block_signals_are_no_abort():
    ready, end = threading.Event(), threading.Event()

    def block(signals):
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        ready.set()
        end.wait()

    kinds = ({signal.SIGABRT}, signal.valid_signals())
    threads = [threading.Thread(target=block, args=[kind]) for kind in kinds]
    faulthandler.dump_traceback_later(60)  # its thread blocks all signals
    try:
        for thread in threads:
            ready.clear()
            thread.start()
            ready.wait()
        assert not lost._aborts()
    finally:
        faulthandler.cancel_dump_traceback_later()
        end.set()
        for thread in threads:
            thread.join()


class _Service:
    """The values of JAX's coordination service."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value, allow_overwrite):
        assert allow_overwrite
        self.values[key] = value

    def key_value_dir_get(self, folder):
        return [pair for pair in self.values.items() if pair[0].startswith(folder)]


def test_all_processes_know_which_one_is_silent(monkeypatch):
    now, service = [0.0], _Service()
    monkeypatch.setattr(lost.time, "monotonic", lambda: now[0])
    signs = [lost.Signs(service, process, 3, 60) for process in range(3)]

    def run(seconds, *alive):
        for _ in range(seconds):
            now[0] += 1
            found = [signs[each].exchange() for each in alive]
        return found

    first, other = "a process", "process 0, or the connection to it,"
    assert run(100, 0, 1, 2) == [first, other, other]
    assert run(14, 0, 1) == [first, other]
    assert run(11, 0, 1) == ["process 2"] * 2
    # It was busy. Then process 0 is halted, and knows nothing about the others.
    assert run(11, 0, 1, 2) == [first, other, other]
    now[0] += 200
    assert run(1, 0) == [first]
    assert run(11, 0, 1, 2) == [first, other, other]
