"""How a program uses the cores of a machine: devices and threads.

What the user has set is left as it is, and `settings` reports it.
"""

import contextlib
import os
import pathlib
from typing import Any

import jax
from absl import logging

from jcm.runtime import large_pages

# Each CPU device holds a copy of the state and computes a part of the batch.
_MAX_DEVICES = 16
# Threads of XLA for each device. With one, the programs of two devices often run one
# after the other on the same thread.
_THREADS = 2
_DEVICES_FLAG = "xla_force_host_platform_device_count"
# The value of NPROC that a program of jcm has set, which is not the user's.
_OURS = "JCM_NPROC"
_QUOTA = pathlib.Path("/sys/fs/cgroup/cpu.max")


def usable() -> list[int]:
    """Returns the numbers of the cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1))


def count() -> int:
    """Returns how many cores this process may use: fewer with a quota of a container.

    A container may run on all cores and yet get the time of a few.
    """
    found = len(usable())
    with contextlib.suppress(OSError, ValueError):  # no cgroup v2, or "max"
        quota, period = map(int, _QUOTA.read_text().split())
        found = min(found, max(1, quota // period))
    return found


def choose(cores: int, batch_size: int) -> tuple[int, int]:
    """Returns the number of CPU devices and of threads for some cores.

    Most operations of XLA use a single core each, so each device computes a part of the
    batch. Their number is a power of two that divides the batch, and at most 16, since
    each one needs memory.
    """
    devices = 1
    while devices * 2 <= min(cores, _MAX_DEVICES) and not batch_size % (devices * 2):
        devices *= 2
    return devices, max(cores, _THREADS * devices)


def use_all(batch_size: int) -> None:
    """Creates the CPU devices and sets the threads that `choose` returns.

    What the user has set is kept and logged. A process that this one starts chooses for
    itself again. Call this before any other use of JAX.

    Args:
      batch_size: images of which each device gets an equal part.
    """
    devices, threads = choose(count(), batch_size)
    if os.environ.get("NPROC", "") in ("", os.environ.get(_OURS)):
        # XLA reads it when the first array is made.
        os.environ["NPROC"] = os.environ[_OURS] = str(threads)
    names = ("NPROC", "XLA_FLAGS", "JAX_NUM_CPU_DEVICES", large_pages.VARIABLE)
    chosen = {
        name: value
        for name in names
        if (value := os.environ.get(name, "")) and not _is_ours(name, value)
    }
    if chosen:
        logging.info(
            "taken from the environment: %s",
            ", ".join(f"{name}={value}" for name, value in chosen.items()),
        )
    if not _devices_are_set():
        jax.config.update("jax_num_cpu_devices", devices)


def _is_ours(name: str, value: str) -> bool:
    """Returns whether a program of jcm has set a variable, and not the user."""
    if name == "NPROC":
        return value == os.environ.get(_OURS)
    return name == large_pages.VARIABLE and value == large_pages.SETTING


def _devices_are_set() -> bool:
    """Returns whether the user has set the number of CPU devices."""
    return (
        _DEVICES_FLAG in os.environ.get("XLA_FLAGS", "")
        or jax.config.values["jax_num_cpu_devices"] > 0
    )


def settings() -> dict[str, Any]:
    """Returns what decides how fast this process computes on a CPU, by name."""
    names = ("NPROC", "XLA_FLAGS", large_pages.VARIABLE)
    return {
        "cores": count(),
        "devices": jax.local_device_count(),
        **{name: os.environ.get(name, "") for name in names},
    }
