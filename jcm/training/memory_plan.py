"""The memory that a training step needs on each device, before it runs."""

import contextlib
import dataclasses
import socket
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jcm.runtime import distributed, memory, sharding
from jcm.runtime.errors import JcmError, one_line


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes that a training step needs on each device.

    Attributes:
      parts: bytes by name, in the order of printing.
      limit: bytes that the device has; None if unknown.
    """

    parts: dict[str, int]
    limit: int | None

    def __str__(self) -> str:
        parts = ", ".join(f"{key} {_mib(value)}" for key, value in self.parts.items())
        limit = f" of {_mib(self.limit)}" if self.limit else ""
        return f"memory per device: {_mib(self.total)}{limit} MiB ({parts})"

    @property
    def total(self) -> int:
        """Bytes of all parts together."""
        return sum(self.parts.values())


def make(state: Any, frozen: Any, batch: Any, compiled: Any, limit: int | None) -> Plan:
    """Returns the plan of a compiled step.

    Args:
      state: shapes and placement of the state, which the step updates in place.
      frozen: shapes and placement of what does not change during the run.
      batch: shapes and placement of a batch; two exist at a time.
      compiled: the step, which reports its working memory: activations, gradients.
      limit: from `limit`, called before any of these arrays existed.
    """
    parts = {
        "parameters": state.params,
        "target": state.target_params,
        "averages": state.ema_params,
        "optimizer": state.opt_state,
        "head": (state.head, state.head_opt_state),
        "teachers": frozen.teachers,
        "constants": frozen.constants,
        "batches": (batch, batch),
    }
    held = {name: sharding.bytes_per_device(part) for name, part in parts.items()}
    needed = compiled.memory_analysis()
    held["step"] = needed.temp_size_in_bytes if needed else 0
    return Plan({name: value for name, value in held.items() if value}, limit)


def keep(plan: Plan) -> None:
    """Lets a CPU keep the memory of a step from one to the next if it has enough."""
    if jax.default_backend() == "cpu":
        memory.keep_freed(plan.parts["step"] * jax.local_device_count())


def check(plan: Plan, config: ConfigDict) -> None:
    """Checks that a plan fits.

    Raises:
      JcmError: if it does not fit; names the settings that need less memory.
    """
    if plan.limit is None or plan.total <= plan.limit:
        return
    raise JcmError(
        f"a step needs {_mib(plan.total)} MiB on each device, which has"
        f" {_mib(plan.limit)}: use {_advice(config, jax.devices())}"
    )


@contextlib.contextmanager
def explain_exhaustion(config: ConfigDict, devices: Sequence[Any]) -> Iterator[None]:
    """Turns a compiler's report of too little memory into an error with advice.

    The compiler of an accelerator detects by itself that a step does not fit.

    Args:
      config: the settings of the step.
      devices: the devices that are compiled for.

    Raises:
      JcmError: names the settings that need less memory, with the compiler's numbers.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = one_line(error)
        if not text.startswith("RESOURCE_EXHAUSTED"):
            raise
        raise JcmError(
            f"a step does not fit on each device: use {_advice(config, devices)}"
            f" ({text[:200]})"
        ) from error


def _advice(config: ConfigDict, devices: Sequence[Any]) -> str:
    """Names settings that need less memory."""
    advice = []
    if config.mesh.fsdp < len(devices):
        advice.append("--config.mesh.fsdp=N to split parameters and optimizer")
    if not config.model.remat:
        advice.append("--config.model.remat to keep fewer activations")
    if config.model.dtype == "float32":
        advice.append("--config.model.dtype=bfloat16")
    # On a CPU the micro-batches overlap and save nothing.
    if devices[0].platform != "cpu":
        advice.append(f"--config.train.accumulate={2 * config.train.accumulate}")
    advice.append("a smaller --config.train.batch_size, or more devices")
    return ", ".join(advice)


def limit() -> int | None:
    """Returns the bytes that one device has, or None if unknown.

    A CPU device has its share of the machine's free memory. Every process must call.
    """
    # Processes of one machine share its memory.
    here = zlib.crc32(socket.gethostname().encode())
    processes = int((distributed.gather(np.uint32(here)) == here).sum())
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if device.platform != "cpu":
        return stats.get("bytes_limit")
    free = memory.available()
    return None if free is None else free // (jax.local_device_count() * processes)


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f}"
