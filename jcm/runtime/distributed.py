"""The processes of a program, and the devices of each."""

import atexit
import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags, logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from jcm.runtime import cluster as cluster_lib
from jcm.runtime import preemption
from jcm.runtime.errors import JcmError, one_line

_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of process 0, for a run of several processes. Slurm, Open MPI and TPUs"
    " tell it themselves; $JAX_COORDINATOR_ADDRESS is another way to say it.",
)
_PROCESSES = flags.DEFINE_integer(
    "processes", None, "How many processes there must be, or $JAX_NUM_PROCESSES."
)
_PROCESS = flags.DEFINE_integer(
    "process", None, "Number of this process, from 0, or $JAX_PROCESS_ID."
)
_JOIN_TIMEOUT = flags.DEFINE_integer(
    "join_timeout", 300, "Seconds to wait for all processes to come.", lower_bound=1
)

_HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
    "heartbeat_timeout",
    60,
    "Seconds after which a process that gives no sign of life counts as lost, and all"
    " others end.",
    lower_bound=10,
)

# Each device of a CPU holds a copy of the state and works on a part of the batch.
_MAX_CPU_DEVICES = 8
# So long a process that fails waits for the others to leave; then all are ended.
_SHUTDOWN_SECONDS = 15
# So often a process asks whether another has ended early, and so long it then waits
# for its own main thread to end by itself, as it does where all fail alike.
_LISTEN_SECONDS, _LEAVE_SECONDS = 1, 2
# What a process that ends early leaves for the others to read.
_ENDED = "jcm/ended"
_joined, _ends_here = threading.Event(), threading.Event()
# Of a message that all processes shall know.
_MESSAGE_BYTES = 1024


def initialize(config: ConfigDict) -> None:
    """Joins the other processes, where flags or the environment say there are any.

    Alone, it makes a device of each core of a CPU. Call it before anything else of
    JAX.

    Args:
      config: the whole config; the batch must divide among the devices.

    Raises:
      JcmError: for flags that do not go together, where joining fails, or where GPUs
        are asked for and there are none.
    """
    flagged = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
    found = cluster_lib.find(os.environ, *flagged, on_tpu=cluster_lib.on_tpu())
    if found is None:
        _use_cores(config.train.batch_size // config.train.accumulate)
        _check_gpu()
        return
    address = found.arguments.get("coordinator_address")
    logging.info("joining the other processes, by %s", address or found.where)
    seconds = _JOIN_TIMEOUT.value
    failure = (
        f"cannot join the processes, by {address or found.where}: start all of them"
        " and look whether process 0 runs and its port can be reached from all, or"
        " raise --join_timeout"
    )
    # JAX would abort the process.
    late = JcmError(f"{failure} ({seconds} s have passed)")
    timer = threading.Timer(seconds, exit_all, [late])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            **found.arguments,
            initialization_timeout=seconds + _SHUTDOWN_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT.value,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except Exception as error:  # of many kinds, also of the cluster's own libraries
        reason = one_line(error, 200)
        raise JcmError(f"{failure} ({reason})") from error
    finally:
        timer.cancel()
    preemption.exit_on_sigterm()  # JAX has put its own handler there
    # JAX ends this process where another is lost, and says so. The stacks that Python
    # would add are not of the one that failed.
    faulthandler.disable()
    count = jax.process_count()
    if found.expected not in (None, count):
        raise JcmError(
            f"{found.expected} processes are expected ({found.where}), but JAX has"
            f" joined {count}: start as many, or correct --processes"
        )
    logging.info(
        "process %d of %d, %d of %d devices here; if one is lost, all end within %d s"
        " (JAX says that another task died), and the same commands go on",
        *(jax.process_index(), count),
        *(jax.local_device_count(), jax.device_count()),
        _HEARTBEAT_TIMEOUT.value,
    )
    if count > 1:
        _joined.set()
        threading.Thread(target=_listen, daemon=True).start()
    _check_gpu()


def exit_all(error: JcmError) -> None:
    """Ends the program from another thread than the main one, and all its processes.

    What the main thread is doing is broken off: at once in a program of one process,
    else once the others have heard of it.
    """
    print(f"jcm: {error}", file=sys.stderr, flush=True)
    try:
        end_others(error)
    finally:
        _end(error.exit_code)


def end_others(error: BaseException) -> None:
    """Makes all other processes end as this one does by `error`; then it may.

    Whatever they are doing: they may wait for this process without end. Their exit
    code is that of the error, or 1. Does nothing where this process is alone.
    """
    if not _joined.is_set():
        return
    preemption.ignore_sigterm()
    if isinstance(error, Exception) and _may_be_lost_process(error):
        logging.exception(
            "This failed here; for %d s it is seen whether another process is lost",
            _HEARTBEAT_TIMEOUT.value,
        )
        # Then `_listen` ends this one, or JAX does.
        time.sleep(_HEARTBEAT_TIMEOUT.value + _LEAVE_SECONDS)
    _ends_here.set()
    client = ocp.multihost.get_jax_distributed_client()
    code = getattr(error, "exit_code", JcmError.exit_code)
    told = f"{code} process {jax.process_index()}: {one_line(error)}"[:_MESSAGE_BYTES]
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was first
        client.key_value_set(_ENDED, told)
    # Before JAX's own end, which would wait for all the others and then abort.
    atexit.register(_end, code)


def _listen() -> None:
    """Ends this process some seconds after another has told that it ends."""
    client = ocp.multihost.get_jax_distributed_client()
    while True:
        time.sleep(_LISTEN_SECONDS)
        try:
            code, _, told = client.key_value_try_get(_ENDED).partition(" ")
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error) or jax.distributed.is_initialized():
                continue
            return  # the end of the run
        if not _ends_here.wait(_LEAVE_SECONDS):
            print(f"jcm: {told}", file=sys.stderr, flush=True)
            _end(int(code))
        return


def _end(code: int) -> None:
    """Ends this process; the first one last, since JAX aborts those that miss it."""
    sys.stdout.flush()
    if _joined.is_set() and jax.process_index() == 0:
        time.sleep(_LISTEN_SECONDS + _LEAVE_SECONDS + 1)
    os._exit(code)


def _may_be_lost_process(error: BaseException | None) -> bool:
    """Whether JAX has failed at something but memory, here or as the cause."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return "RESOURCE_EXHAUSTED" not in str(error)
        error = error.__cause__ or error.__context__
    return False


def _check_gpu() -> None:
    """JAX would go on without a word where $JAX_PLATFORMS asks for GPUs first."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    if asked.startswith(("cuda", "gpu")) and jax.default_backend() == "cpu":
        raise JcmError(
            f"JAX_PLATFORMS={asked}, but there is no NVIDIA GPU that JAX can use: see"
            " what nvidia-smi says, or use launch/local.sh"
        )


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


def from_main(value: Any) -> Any:
    """The value of process 0, in every process; every process must call.

    Args:
      value: a number, a bool or an array, of one shape and type everywhere.

    Returns:
      A Python scalar for a scalar, an array for an array.
    """
    found = gather(np.asarray(value))[0]
    return found if found.ndim else found.item()


def barrier(name: str) -> None:
    """Waits until every process is here; the name is for errors."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """What is done within fails in every process where it fails in any.

    Every process must come here, and nothing within may wait for another.

    Raises:
      JcmError: in the processes where it did not fail: what has failed in the first.
    """
    failed = None
    try:
        yield
    except Exception as error:  # raised again below, once the others know
        failed = error
    text = one_line(failed).encode()[:_MESSAGE_BYTES] if failed else b""
    padded = np.frombuffer(text.ljust(_MESSAGE_BYTES, b"\0"), np.uint8)
    for process, message in enumerate(gather(padded)):
        told = message.tobytes().rstrip(b"\0").decode(errors="replace")
        if told:
            raise failed or JcmError(f"process {process}: {told}")


def check_equal(settings: Mapping[str, Any]) -> None:
    """Makes sure that every process was started alike; every process must call.

    Args:
      settings: plain data by name.

    Raises:
      JcmError: names the first that differs, in every process.
    """
    if jax.process_count() == 1:
        return
    text = json.dumps(settings, sort_keys=True, default=str).encode()
    longest = int(gather(np.int64(len(text))).max())
    everyone = [
        json.loads(each.tobytes())
        for each in gather(np.frombuffer(text.ljust(longest), np.uint8))
    ]
    first = everyone[0]
    for process, theirs in enumerate(everyone):
        for name in sorted(first.keys() | theirs.keys()):
            if first.get(name) != theirs.get(name):
                raise JcmError(
                    f"process {process} has {name}={theirs.get(name)!r} and process 0"
                    f" has {first.get(name)!r}: start all with the same command,"
                    " code and packages"
                )
