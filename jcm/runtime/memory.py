"""The memory of this process."""

import contextlib
import ctypes
import gc
import pathlib
import resource
import sys

_M_ARENA_MAX = -8  # malloc.h


def peak_gib() -> float:
    """The most that this process has held at any time, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def use_few_heaps() -> None:
    """Makes all threads share two heaps of glibc's, from now on.

    By default each thread of the compiler leaves a heap of its own behind, full of
    holes: 0.1 GiB more at the peak of compiling a training step. With a single one,
    which is trimmed and grown all the time, steps of small networks take half as long
    again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)


def release() -> None:
    """Gives freed memory back to the system, where the C library has kept it.

    A compiler frees hundreds of MiB in small pieces, which glibc keeps for the next
    one, though training asks for a few large ones.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def available() -> int | None:
    """Bytes that this process may still take of the machine; None where it is unknown.

    A container's limit counts, not that of the machine it is on.
    """
    free = []
    with contextlib.suppress(OSError, ValueError):
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("MemAvailable:"))
        free.append(int(line.split()[1]) * 1024)
    group = pathlib.Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # "max" is no limit
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        stat = dict(map(str.split, (group / "memory.stat").read_text().splitlines()))
        # Files that are kept in memory give way.
        free.append(limit - used + int(stat.get("file", 0)))
    return min(free, default=None)
