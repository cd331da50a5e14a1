"""The memory that this process uses, and how much is available."""

import contextlib
import ctypes
import gc
import pathlib
import resource
import sys

# M_ARENA_MAX in malloc.h of glibc.
_ARENA_MAX = -8


def peak_gib() -> float:
    """Returns the peak memory of this process so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def release() -> None:
    """Returns freed memory to the system.

    The compiler frees hundreds of MiB in small pieces. glibc keeps them, while training
    asks for large pieces. On two cores this lowers the peak of a distillation of
    CIFAR-10 with 32 features from 2.1 to 1.5 GiB.
    """
    gc.collect()
    trim()


def trim() -> None:
    """Returns what was freed to the system, without searching for more to free."""
    found = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if found is not None:
        found(0)


def share_pools() -> None:
    """Lets all threads take small pieces of memory from two pools.

    By default glibc has a pool for each of up to 8 threads per core, and each keeps
    what its threads once needed. This holds for threads that start afterwards.
    """
    found = getattr(ctypes.CDLL(None), "mallopt", None)
    if found is not None:
        found(_ARENA_MAX, 2)


def available() -> int | None:
    """Returns how many bytes this process can still allocate; None if unknown.

    In a container its limit applies as well as the memory of the machine.
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
        # The kernel drops cached files if a process needs the memory.
        free.append(limit - used + int(stat.get("file", 0)))
    return min(free, default=None)
