"""What the processor does and can do: CPU seconds, threads, convolutions.

Linux tells in /proc what each thread and each core has done; other systems tell only
the CPU seconds of this process.
"""

import contextlib
import dataclasses
import os
import pathlib
import resource
import time
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jcm.runtime import cores

_PROC = pathlib.Path("/proc")
# A thread that worked for less than this share of the time only waited.
_WORKED = 0.05
# Over a shorter time, the 10 ms in which Linux counts are too coarse.
_COUNTED_SECONDS = 0.5
# In /proc/stat, these columns are seconds without work.
_IDLE = ("idle", "iowait")
_COLUMNS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
# The convolution that is measured: kernel, channels, height and width, and how many
# follow each other in one program.
_KERNEL, _CHANNELS, _SIZE, _CHAIN = 3, 64, 32, 8
_IMAGES_PER_DEVICE = {"cpu": 16}
_MANY_IMAGES = 256
_CALLS = 5


@dataclasses.dataclass(frozen=True)
class Use:
    """The work of this process and of its cores so far, for a difference.

    Attributes:
      at: when it was read, in seconds.
      own: CPU seconds of this process.
      threads: CPU seconds of each thread by its number; empty if unknown.
      busy: CPU seconds of all processes on the cores of this one; None if unknown.
      cores: the number of these cores.
    """

    at: float
    own: float
    threads: Mapping[int, float]
    busy: float | None
    cores: int

    @classmethod
    def now(cls) -> "Use":
        """Reads the counters of the system."""
        mine = cores.usable()
        return cls(
            at=time.perf_counter(),
            own=sum(cpu_seconds()),
            threads=_thread_seconds(),
            busy=_busy_seconds(mine),
            cores=len(mine),
        )

    def threads_since(self, before: "Use") -> int | None:
        """Returns the number of threads that have worked since; None if unknown."""
        if not self.threads:
            return None
        least = _WORKED * (self.at - before.at)
        return sum(
            seconds - before.threads.get(thread, 0.0) > least
            for thread, seconds in self.threads.items()
        )

    def others_since(self, before: "Use") -> float | None:
        """Returns the share of the cores that others have used; None if unknown."""
        if self.busy is None or before.busy is None:
            return None
        passed = self.at - before.at
        if passed < _COUNTED_SECONDS:
            return None
        others = (self.busy - before.busy) - (self.own - before.own)
        return max(others, 0.0) / (self.cores * passed)


def cpu_seconds() -> tuple[float, float]:
    """Returns the CPU seconds of this process in programs and in the kernel."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime, used.ru_stime


def reset_peak_memory() -> None:
    """Lets the peak memory of this process start at what it uses now, on Linux."""
    with contextlib.suppress(OSError):
        (_PROC / "self/clear_refs").write_text("5")


def convolution_flops_per_second(devices: Sequence[jax.Device], dtype: str) -> float:
    """Measures 3x3 convolutions of 64 channels on 32x32 images, forward.

    All devices compute at once, each on images of its own. The fastest of several calls
    counts, since other load only ever slows one down.

    Args:
      devices: the devices, all of this process.
      dtype: float32 or bfloat16.

    Returns:
      FLOP/s of all devices together.
    """
    each = _IMAGES_PER_DEVICE.get(devices[0].platform, _MANY_IMAGES)
    split = NamedSharding(Mesh(np.asarray(devices), ("all",)), PartitionSpec("all"))
    shape = (each * len(devices), _SIZE, _SIZE, _CHANNELS)

    def chain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        for _ in range(_CHAIN):
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        return x

    x = jax.device_put(jnp.ones(shape, dtype), split)
    # The mean of the inputs, so that no number grows.
    terms = _KERNEL * _KERNEL * _CHANNELS
    kernel = jnp.full((_KERNEL, _KERNEL, _CHANNELS, _CHANNELS), 1 / terms, dtype)
    run = jax.jit(chain)
    seconds = []
    for _ in range(_CALLS + 1):
        started = time.perf_counter()
        jax.block_until_ready(run(x, kernel))
        seconds.append(time.perf_counter() - started)
    return _CHAIN * 2 * terms * x.size / min(seconds[1:])


def _thread_seconds() -> dict[int, float]:
    """Returns the CPU seconds of each thread of this process; {} if unknown."""
    found = {}
    ticks = os.sysconf("SC_CLK_TCK")
    for file in (_PROC / "self/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # the thread has ended
            # The name, in parentheses, may itself contain spaces.
            fields = file.read_text().rpartition(")")[2].split()
            found[int(file.parent.name)] = (int(fields[11]) + int(fields[12])) / ticks
    return found


def _busy_seconds(mine: Sequence[int]) -> float | None:
    """Returns the CPU seconds that all processes have spent on some cores."""
    try:
        lines = (_PROC / "stat").read_text().splitlines()
    except OSError:
        return None
    wanted, busy = {f"cpu{core}" for core in mine}, 0
    for line in lines:
        name, *columns = line.split()
        if name in wanted:
            wanted.remove(name)
            named = zip(_COLUMNS, columns, strict=False)
            busy += sum(int(count) for kind, count in named if kind not in _IDLE)
    # A container may see other numbers of cores here.
    return None if wanted else busy / os.sysconf("SC_CLK_TCK")
