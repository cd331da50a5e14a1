"""The processes of a program, and the devices of each."""

import contextlib
import dataclasses
import faulthandler
import functools
import glob
import importlib.util
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

from jcm import preemption
from jcm.errors import JcmError

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
    lower_bound=5,
)

# Each device of a CPU holds a copy of the state and works on a part of the batch.
_MAX_CPU_DEVICES = 8
# So long a process that fails waits for the others to leave; then all are ended.
_SHUTDOWN_SECONDS = 15
# So often a process asks whether another has failed, and so long it then waits for
# its own main thread to end by itself, as it does where all fail alike.
_LISTEN_SECONDS, _LEAVE_SECONDS = 2, 3
# What a process that fails leaves for the others to read.
_FAILED = "jcm/failed"
# Of a message that all processes shall know.
_MESSAGE_BYTES = 1024


@dataclasses.dataclass(frozen=True)
class Cluster:
    """How this process joins others.

    Attributes:
      arguments: of `jax.distributed.initialize`; what is left out JAX finds itself.
      expected: how many processes there must be then; None where only JAX can tell.
      where: for people.
    """

    arguments: dict[str, Any]
    expected: int | None
    where: str


def initialize(config: ConfigDict) -> None:
    """Joins the other processes, where flags or the environment say there are any.

    Alone, it makes a device of each core of a CPU. Call it before anything else of
    JAX.

    Args:
      config: the whole config; the batch must divide among the devices.

    Raises:
      JcmError: for flags that do not go together, or where joining fails.
    """
    flagged = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
    found = cluster(os.environ, *flagged, on_tpu=_on_tpu())
    if found is None:
        _use_cores(config.train.batch_size // config.train.accumulate)
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
    timer = threading.Timer(seconds, leave, [late])
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
        reason = " ".join(str(error).split())[:200]
        raise JcmError(f"{failure} ({reason})") from error
    finally:
        timer.cancel()
    preemption.leave_on_sigterm()  # JAX has put its own handler there
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
        threading.Thread(target=_listen, daemon=True).start()


def leave(error: JcmError) -> None:
    """Ends the program from another thread than the main one, at once.

    What the main thread is doing is broken off, and nothing more is written.
    """
    print(f"jcm: {error}", file=sys.stderr, flush=True)
    os._exit(error.exit_code)


def tell_failure(error: BaseException) -> None:
    """Makes all other processes end, with what has failed here.

    Whatever they are doing: they may wait for this process without end. Does nothing
    where this process is alone.
    """
    client = ocp.multihost.get_jax_distributed_client() if _joined() else None
    if client is not None:
        text = f"process {jax.process_index()}: {_text(error)}"
        # Where it cannot be told, or another was first, JAX ends all some time later.
        with contextlib.suppress(Exception):
            client.key_value_set(_FAILED, text[:_MESSAGE_BYTES])


def _listen() -> None:
    """Ends this process some seconds after another has told that it failed."""
    client = ocp.multihost.get_jax_distributed_client()
    while True:
        time.sleep(_LISTEN_SECONDS)
        try:
            told = client.key_value_try_get(_FAILED)
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                continue
            return  # the end of the run
        time.sleep(_LEAVE_SECONDS)
        with contextlib.suppress(Exception):
            jax.distributed.shutdown()  # which the other waits for
        leave(JcmError(told))


def _joined() -> bool:
    return jax.distributed.is_initialized() and jax.process_count() > 1


def _text(error: BaseException) -> str:
    """What it says, and never nothing."""
    return str(error) or repr(error)


def cluster(
    environment: Mapping[str, str],
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    on_tpu: bool = False,
) -> Cluster | None:
    """How this process joins others; None where it is alone.

    Flags win over JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, and
    these over what Slurm, Open MPI, Kubernetes or a TPU say.

    Args:
      environment: variables of this process.
      coordinator: HOST:PORT of process 0.
      processes: how many there are.
      process: number of this one.
      on_tpu: whether this machine has TPU chips.

    Raises:
      JcmError: where something is missing, or is no number.
    """
    number = functools.partial(_number, environment)
    where = "flags"
    if (coordinator, processes, process) == (None, None, None):
        where = "JAX_COORDINATOR_ADDRESS"
    coordinator = coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    if processes is None:
        processes = number("JAX_NUM_PROCESSES")
    if process is None:
        process = number("JAX_PROCESS_ID")

    slurm = {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"}
    # Of this step of the job. A shell in an allocation of many tasks is one alone.
    tasks = number("SLURM_STEP_NUM_TASKS") or number("SLURM_NTASKS") or 1
    if tasks > 1 and slurm <= environment.keys() and coordinator is None:
        # JAX takes the GPU with the number of the task on its node. A task that sees
        # a single one, or is alone on its node, has all that it sees.
        visible = environment.get("CUDA_VISIBLE_DEVICES", "")
        gpus = len(visible.split(",")) if visible else 0
        alone = tasks == number("SLURM_STEP_NUM_NODES")
        arguments = {}
        if gpus == 1 or (gpus and alone):
            arguments = {"local_device_ids": list(range(gpus))}
        return Cluster(arguments, processes or tasks, "Slurm")

    ranks = number("OMPI_COMM_WORLD_SIZE") or 1
    if ranks > 1:
        if coordinator is None and "OMPI_MCA_orte_hnp_uri" in environment:
            return Cluster({}, processes or ranks, "Open MPI")
        processes = ranks if processes is None else processes
        process = number("OMPI_COMM_WORLD_RANK") if process is None else process
        where = "Open MPI"
    elif process is None and coordinator is not None:
        # What an indexed Job of Kubernetes gives each of its pods.
        process = number("JOB_COMPLETION_INDEX")

    if coordinator is None and process is None and on_tpu:
        # JAX asks the environment on GKE, or else the metadata server.
        hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get(
            "TPU_WORKER_HOSTNAMES"
        )
        if not hosts and "TPU_SKIP_MDS_QUERY" in environment:
            return None
        expected = processes
        if expected is None and hosts:
            slices = number("MEGASCALE_NUM_SLICES") or 1
            expected = len(hosts.split(",")) * slices
        return Cluster({}, expected, "TPU")

    given = {"coordinator": coordinator, "processes": processes, "process": process}
    if set(given.values()) == {None}:
        if tasks > 1 and "SLURM_STEP_NODELIST" not in environment:
            logging.warning(
                "Slurm has %d tasks, but this program was not started by srun: it runs"
                " alone",
                tasks,
            )
        return None
    for name, value in given.items():
        if value is None:
            raise JcmError(
                "--coordinator, --processes and --process go together, and"
                f" --{name} is missing ({where})"
            )
    if not 0 <= process < processes:
        raise JcmError(
            f"--process={process} must be from 0 to {processes - 1}, one less than"
            " --processes"
        )
    arguments = {
        "coordinator_address": coordinator,
        "num_processes": processes,
        "process_id": process,
    }
    return Cluster(arguments, processes, where)


def _number(environment: Mapping[str, str], name: str) -> int | None:
    """A whole number of the environment, or None where it is not set."""
    text = environment.get(name, "")
    try:
        return int(text) if text else None
    except ValueError as error:
        raise JcmError(f"${name}={text!r} must be a whole number") from error


def _on_tpu() -> bool:
    """Whether JAX would use TPU chips of this machine."""
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    chosen = os.environ.get("JAX_PLATFORMS", "tpu")
    return bool(
        chips and "tpu" in chosen and importlib.util.find_spec("libtpu") is not None
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


def wait(name: str) -> None:
    """Waits until every process is here; the name is for errors."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def together() -> Iterator[None]:
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
    text = _text(failed).encode()[:_MESSAGE_BYTES] if failed else b""
    padded = np.frombuffer(text.ljust(_MESSAGE_BYTES, b"\0"), np.uint8)
    for process, message in enumerate(gather(padded)):
        told = message.tobytes().rstrip(b"\0").decode(errors="replace")
        if told:
            raise failed or JcmError(f"process {process}: {told}")


def refuse_differences(settings: Mapping[str, Any]) -> None:
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
