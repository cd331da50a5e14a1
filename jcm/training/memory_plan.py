"""What a training step needs of each device's memory, before it is run."""

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
    """Bytes on each device.

    Attributes:
      parts: by name, in the order of printing.
      limit: how much there is; None where nobody tells.
    """

    parts: dict[str, int]
    limit: int | None

    def __str__(self) -> str:
        parts = ", ".join(f"{key} {_mib(value)}" for key, value in self.parts.items())
        there_is = f" of {_mib(self.limit)}" if self.limit else ""
        return f"memory of each device: {_mib(self.total)}{there_is} MiB: {parts}"

    @property
    def total(self) -> int:
        """All parts."""
        return sum(self.parts.values())


def make(state: Any, frozen: Any, batch: Any, compiled: Any, limit: int | None) -> Plan:
    """The plan of a compiled step.

    Args:
      state: shapes and placement; the step works in place.
      frozen: the same of what stays as it is.
      batch: the same; two are there at a time.
      compiled: the step, which knows its working memory: activations, gradients.
      limit: from `limit`, asked before any of it was there.
    """
    parts = {
        "parameters": state.params,
        "target": state.target_params,
        "averages": state.ema_params,
        "optimizer": state.opt_state,
        "teacher": frozen.teacher,
        "constants": frozen.constants,
        "batches": (batch, batch),
    }
    held = {name: sharding.bytes_per_device(part) for name, part in parts.items()}
    needed = compiled.memory_analysis()
    held["step"] = needed.temp_size_in_bytes if needed else 0
    return Plan({name: value for name, value in held.items() if value}, limit)


def refuse(plan: Plan, config: ConfigDict) -> None:
    """Makes sure that a plan fits.

    Raises:
      JcmError: where it does not; says which settings need less.
    """
    if plan.limit is None or plan.total <= plan.limit:
        return
    raise JcmError(
        f"a step needs {_mib(plan.total)} MiB on each device, and there are"
        f" {_mib(plan.limit)}: use {_advice(config, jax.devices())}"
    )


@contextlib.contextmanager
def refusing(config: ConfigDict, devices: Sequence[Any]) -> Iterator[None]:
    """Within, the compiler of an accelerator finds out by itself that a plan fails.

    Args:
      config: says what may be changed.
      devices: that are compiled for.

    Raises:
      JcmError: the same advice, with the compiler's numbers.
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
    """Settings that need less memory."""
    advice = []
    if config.mesh.fsdp < len(devices):
        advice.append("--config.mesh.fsdp=N to share out parameters and optimizer")
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
    """Bytes that one device has; of a CPU its share of what the machine has free.

    Every process must ask.
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
