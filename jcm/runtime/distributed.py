"""Starts the processes of a program, lets them agree, and ends them together."""

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
from absl import logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from jcm.runtime import cluster as cluster_lib
from jcm.runtime import cores, lost, preemption
from jcm.runtime.errors import JcmError, one_line

# How long a failing process waits for the others to end before JAX ends them all.
_SHUTDOWN_SECONDS = 15
# How often a process checks whether another one has ended early, and how long its main
# thread then has to end by itself, as it does if all processes fail in the same way.
_LISTEN_SECONDS, _EXIT_SECONDS = 1, 2
# The key under which a process that ends early stores its error for the others.
_ENDED = "jcm/ended"
# `_serves` is set in process 0, where JAX's service runs. At the end of a program, JAX
# cannot be asked for the index any more.
_joined, _serves, _ends_here = (threading.Event() for _ in range(3))
# JAX may end a process this much later.
_LATER_SECONDS = 20
# The length of a message that processes exchange.
_MESSAGE_BYTES = 1024
# The time in seconds after which a silent process counts as lost; of this run.
_heartbeat_timeout = 60


def initialize(
    config: ConfigDict,
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    join_timeout: int = 300,
    heartbeat_timeout: int = 60,
) -> None:
    """Joins the processes that arguments or the environment name.

    A program of one process gets a device for each core of a CPU. Call this before any
    other use of JAX.

    Args:
      config: the whole config; the devices divide the batch.
      coordinator: HOST:PORT of process 0.
      processes: the number of processes.
      process: the index of this process.
      join_timeout: seconds to wait until all processes have started.
      heartbeat_timeout: seconds without a sign of life after which a process counts as
        lost, and all others end.

    Raises:
      JcmError: if arguments contradict each other, if joining fails, or if
        JAX_PLATFORMS asks for GPUs and there are none.
    """
    global _heartbeat_timeout
    _heartbeat_timeout = heartbeat_timeout
    found = cluster_lib.find(
        os.environ, coordinator, processes, process, on_tpu=cluster_lib.on_tpu()
    )
    if found is None:
        cores.use_all(config.train.batch_size // config.train.accumulate)
        _check_gpu()
        return
    _join(found, join_timeout)
    preemption.exit_on_signals()  # replaces the handler that JAX installs
    # If process 0 is lost, JAX aborts this one with a message. The stack traces that
    # Python would add say nothing about the process that failed.
    faulthandler.disable()
    count = jax.process_count()
    if found.expected not in (None, count):
        raise JcmError(
            f"expected {found.expected} processes ({found.where}), but JAX has joined"
            f" {count}: start {found.expected}, or correct --processes"
        )
    logging.info(
        "process %d of %d with %d of %d devices; if a process is lost, all others end"
        " after %d s, and the same commands resume the run",
        *(jax.process_index(), count),
        *(jax.local_device_count(), jax.device_count()),
        _heartbeat_timeout,
    )
    if count > 1:
        _joined.set()
        if jax.process_index() == 0:
            _serves.set()
        threading.Thread(target=_listen, daemon=True).start()
    _check_gpu()


def _join(found: cluster_lib.Cluster, seconds: int) -> None:
    """Joins the processes of a cluster within a time.

    Raises:
      JcmError: if joining fails; after a timeout the program ends instead.
    """
    address = found.arguments.get("coordinator_address") or found.where
    logging.info("joining the other processes (%s)", address)
    failure = (
        f"cannot join the processes ({address}): start all of them, check that process"
        " 0 is running and that all can reach its port, or raise --join_timeout"
    )
    # After its own timeout JAX would abort this process with a stack trace.
    late = JcmError(f"{failure} (timeout of {seconds} s)")
    timer = threading.Timer(seconds, exit_all, [late])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            **found.arguments,
            initialization_timeout=seconds + _SHUTDOWN_SECONDS,
            heartbeat_timeout_seconds=_heartbeat_timeout,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except Exception as error:  # JAX and the libraries of clusters raise many types
        raise JcmError(f"{failure} ({one_line(error, 200)})") from error
    finally:
        timer.cancel()


def exit_all(error: JcmError) -> None:
    """Ends all processes of the program; call it from any thread but the main one.

    The main thread is interrupted wherever it is: at once in a program of one process,
    otherwise when the other processes know of the error.
    """
    print(f"jcm: {error}", file=sys.stderr, flush=True)
    try:
        end_others(error)
    finally:
        _end(error.exit_code)


def end_others(error: BaseException) -> None:
    """Ends all other processes because of an error; this one must then end itself.

    The others end whatever they are doing, since they could wait for this process
    forever. Their exit code is that of the error, or 1. In a program of one process
    this does nothing.
    """
    if not _joined.is_set():
        return
    preemption.ignore_signals()
    if isinstance(error, Exception) and _may_be_lost_process(error):
        logging.warning(
            "this process failed (%s); waiting %d s in case another process was lost",
            *(one_line(error, _MESSAGE_BYTES), _heartbeat_timeout),
        )
        # If another was lost, `_listen` or JAX ends this process meanwhile.
        time.sleep(_heartbeat_timeout + _LATER_SECONDS + _EXIT_SECONDS)
    _ends_here.set()
    client = ocp.multihost.get_jax_distributed_client()
    code = getattr(error, "exit_code", JcmError.exit_code)
    text = f"{code} process {jax.process_index()}: {one_line(error)}"[:_MESSAGE_BYTES]
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process was first
        client.key_value_set(_ENDED, text)
    # This runs before JAX's own exit, which would wait for all others and then abort.
    atexit.register(_end, code)


def _listen() -> None:
    """Ends this process a few seconds after another one has ended early.

    If another is lost, JAX ends this process, and `lost` explains it.
    """
    client, me = ocp.multihost.get_jax_distributed_client(), jax.process_index()
    aborts = lost.Aborts()
    signs = lost.Signs(client, me, jax.process_count(), _heartbeat_timeout)
    while True:
        time.sleep(_LISTEN_SECONDS)
        try:
            with aborts.explained():
                aborts.who = signs.exchange()
                code, _, text = client.key_value_try_get(_ENDED).partition(" ")
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error) or jax.distributed.is_initialized():
                continue
            return  # the run is over
        if not _ends_here.wait(_EXIT_SECONDS):
            print(f"jcm: {text}", file=sys.stderr, flush=True)
            _end(int(code))
        return


def _end(code: int) -> None:
    """Ends this process; process 0 waits, since JAX aborts the others without it."""
    sys.stdout.flush()
    if _serves.is_set():
        time.sleep(_LISTEN_SECONDS + _EXIT_SECONDS + 1)
    os._exit(code)


def _may_be_lost_process(error: BaseException | None) -> bool:
    """Returns whether an error or its cause is JAX's, other than a lack of memory."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return "RESOURCE_EXHAUSTED" not in str(error)
        # JAX raises some errors of its collectives on CPUs as they are.
        if isinstance(error, ValueError) and "Gloo" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _check_gpu() -> None:
    """Checks that JAX uses a GPU if $JAX_PLATFORMS asks for one; JAX does not warn.

    Raises:
      JcmError: if it uses the CPU.
    """
    asked = os.environ.get("JAX_PLATFORMS", "")
    if asked.startswith(("cuda", "gpu")) and jax.default_backend() == "cpu":
        raise JcmError(
            f"JAX_PLATFORMS={asked}, but there is no NVIDIA GPU that JAX can use:"
            " check with nvidia-smi, or use launch/local.sh"
        )


def gather(array: np.ndarray | np.generic) -> np.ndarray:
    """Returns the arrays of all processes, bit for bit, stacked along a new axis.

    Every process must call this.

    Args:
      array: an array of the same shape and type in every process.

    Returns:
      An array of shape (processes, *array.shape).
    """
    array = np.asarray(array)
    if jax.process_count() == 1:
        return array[None]
    # JAX would truncate 64-bit types to 32 bits, so bytes are sent.
    content = np.frombuffer(array.tobytes(), np.uint8)
    found = np.asarray(multihost_utils.process_allgather(content))
    return np.frombuffer(found.tobytes(), array.dtype).reshape(-1, *array.shape)


def from_main(value: Any) -> Any:
    """Returns the value of process 0 in every process; every process must call this.

    Args:
      value: a number, a bool or an array, of the same shape and type in every process.

    Returns:
      A Python scalar for a scalar, an array for an array.
    """
    found = gather(np.asarray(value))[0]
    return found if found.ndim else found.item()


def barrier(name: str) -> None:
    """Waits until every process has called this; error messages show the name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """Makes the block fail in every process if it fails in any.

    Every process must enter the block, and must not wait for another process in it.

    Raises:
      JcmError: in the processes where the block has not failed; the message quotes the
        error of the first process where it has failed.
    """
    failed = None
    try:
        yield
    except Exception as error:  # raised below, when the others know of it
        failed = error
    # The name of a file in the message may not be UTF-8.
    text = one_line(failed).encode(errors="backslashreplace") if failed else b""
    text = text[:_MESSAGE_BYTES]
    padded = np.frombuffer(text.ljust(_MESSAGE_BYTES, b"\0"), np.uint8)
    for process, message in enumerate(gather(padded)):
        text = message.tobytes().rstrip(b"\0").decode(errors="replace")
        if text:
            raise failed or JcmError(f"process {process}: {text}")


def check_equal(settings: Mapping[str, Any]) -> None:
    """Checks that all processes have equal settings; every process must call this.

    Args:
      settings: plain data by name.

    Raises:
      JcmError: in every process; the message names the first setting that differs.
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
                    f" has {first.get(name)!r}: start all processes with the"
                    " same command, code and packages"
                )
