"""The processes of a program, and the devices of each."""

import os

import jax
import numpy as np
from absl import flags, logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from jcm.errors import JcmError

_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, for a run of several processes."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.")
_PROCESS = flags.DEFINE_integer("process", None, "Number of this process, from 0.")

# Each device of a CPU holds a copy of the state and works on a part of the batch.
_MAX_CPU_DEVICES = 8


def initialize(config: ConfigDict) -> None:
    """Joins the other processes, where flags say that there are any.

    Alone, it makes a device of each core of a CPU. Call it before anything else of
    JAX.

    Args:
      config: the whole config; the batch must divide among the devices.

    Raises:
      JcmError: for flags that do not go together, or where joining fails.
    """
    given = (_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    if given == (None, None, None):
        _use_cores(config.train.batch_size // config.train.accumulate)
        return
    if None in given:
        raise JcmError("--coordinator, --processes and --process go together")
    try:
        jax.distributed.initialize(*given)
    except (RuntimeError, ValueError) as error:
        raise JcmError(f"cannot join the processes at {given[0]}: {error}") from error
    logging.info("process %d of %d", jax.process_index(), jax.process_count())


def _use_cores(batch_size: int) -> None:
    """Makes as many CPU devices as there are cores, unless the user said how many.

    Some of XLA's operations, in jax 0.10 the convolutions, keep a single core busy
    each. Split over devices, a training step of NCSN++ takes 1.1 to 1.6 times less
    on two cores. Powers of two, so that the usual batches divide.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or jax.config.jax_num_cpu_devices > 0:
        return
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    devices = 1
    while devices * 2 <= min(cores, _MAX_CPU_DEVICES) and not batch_size % (
        devices * 2
    ):
        devices *= 2
    jax.config.update("jax_num_cpu_devices", devices)


def gather(array: np.ndarray | np.generic) -> np.ndarray:
    """One array of every process, stacked; to the bit, whatever its type.

    Every process must call, with arrays of one shape and type.
    """
    array = np.asarray(array)
    if jax.process_count() == 1:
        return array[None]
    # As bytes, since JAX would make 32 bits of 64.
    content = np.frombuffer(array.tobytes(), np.uint8)
    found = np.asarray(multihost_utils.process_allgather(content))
    return np.frombuffer(found.tobytes(), array.dtype).reshape(-1, *array.shape)
