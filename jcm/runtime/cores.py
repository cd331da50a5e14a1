"""How a program uses the cores of a machine: devices and threads.

What the user has set is left as it is, and `settings` reports it.
"""

import os
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


def usable() -> list[int]:
    """Returns the numbers of the cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1))


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

    What the user has set is kept and logged. Call this before any other use of JAX.

    Args:
      batch_size: images of which each device gets an equal part.
    """
    devices, threads = choose(len(usable()), batch_size)
    own = {"NPROC": str(threads)}  # XLA reads it when the first array is made
    chosen = {
        name: os.environ[name]
        for name in (*own, "XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
        if os.environ.get(name, "") not in ("", own.get(name))
    }
    if chosen:
        logging.info(
            "taken from the environment: %s",
            ", ".join(f"{name}={value}" for name, value in chosen.items()),
        )
    if not _devices_are_set():
        jax.config.update("jax_num_cpu_devices", devices)
    os.environ.update(own | chosen)


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
        "cores": len(usable()),
        "devices": jax.local_device_count(),
        **{name: os.environ.get(name, "") for name in names},
    }
