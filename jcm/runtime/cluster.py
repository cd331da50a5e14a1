"""Finds the other processes of a program by flags and environment variables.

JAX detects the address, the number and the index of processes under Slurm, Open MPI 4
and on TPUs. This module adds what JAX does not do. It decides whether there are other
processes at all, reads flags and variables for the number and the index, chooses the
GPUs of a Slurm task, needs no further packages under Open MPI 5 and Kubernetes, and
says how many processes to expect.
"""

import dataclasses
import glob
import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from absl import logging

from jcm.runtime.errors import JcmError

# A task that JAX can detect has all of these variables.
_SLURM = {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"}


@dataclasses.dataclass(frozen=True)
class Cluster:
    """How to join the other processes.

    Attributes:
      arguments: of `jax.distributed.initialize`; JAX detects those that are missing.
      expected: the number of processes; None if only JAX can find it.
      where: the source of this information, for messages.
    """

    arguments: dict[str, Any]
    expected: int | None
    where: str


def find(
    environment: Mapping[str, str],
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    on_tpu: bool = False,
) -> Cluster | None:
    """Returns how to join the other processes, or None if there are no others.

    Flags take precedence over JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID, and these over Slurm, Open MPI, Kubernetes and TPUs.

    Args:
      environment: the environment variables of this process.
      coordinator: HOST:PORT of process 0, from a flag.
      processes: the number of processes, from a flag.
      process: the index of this process, from a flag.
      on_tpu: whether this machine has TPU chips.

    Raises:
      JcmError: if a part of the information is missing, or is not a number.
    """
    flagged = (coordinator, processes, process) != (None, None, None)
    where = "flags" if flagged else "JAX_COORDINATOR_ADDRESS"
    coordinator = coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    if processes is None:
        processes = _number(environment, "JAX_NUM_PROCESSES")
    if process is None:
        process = _number(environment, "JAX_PROCESS_ID")
    if coordinator is None and _slurm_tasks(environment) > 1:
        if environment.keys() >= _SLURM:
            return _slurm(environment, processes)

    options = {}
    ranks = _number(environment, "OMPI_COMM_WORLD_SIZE") or 1
    if ranks > 1:
        detected = "OMPI_MCA_orte_hnp_uri" in environment  # of Open MPI 4
        if detected and coordinator is None:
            return Cluster({}, processes or ranks, "Open MPI")
        processes = ranks if processes is None else processes
        if process is None:
            process = _number(environment, "OMPI_COMM_WORLD_RANK")
        where = "Open MPI"
        if not detected:  # jax 0.12 would require mpi4py
            options = {"cluster_detection_method": "deactivate"}
    elif process is None and coordinator is not None:
        # Kubernetes sets it in each pod of an indexed Job.
        process = _number(environment, "JOB_COMPLETION_INDEX")

    if coordinator is None and process is None and on_tpu:
        return _tpu(environment, processes)
    if (coordinator, processes, process) == (None, None, None):
        _warn_without_srun(environment)
        return None
    return _explicit(coordinator, processes, process, where, options)


def _slurm_tasks(environment: Mapping[str, str]) -> int:
    """Returns the number of tasks of this step; 1 outside of Slurm."""
    # A shell in an allocation of many tasks is a step of one task.
    return (
        _number(environment, "SLURM_STEP_NUM_TASKS")
        or _number(environment, "SLURM_NTASKS")
        or 1
    )


def _slurm(environment: Mapping[str, str], processes: int | None) -> Cluster:
    """Returns how to join the tasks of a Slurm step, with the GPUs of this one."""
    tasks = _slurm_tasks(environment)
    # By default JAX takes the GPU whose number is that of the task on its node. A task
    # that sees a single GPU, or is alone on its node, uses every GPU that it sees.
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    gpus = len(visible.split(",")) if visible else 0
    alone = tasks == _number(environment, "SLURM_STEP_NUM_NODES")
    arguments = {}
    if gpus == 1 or (gpus and alone):
        arguments = {"local_device_ids": list(range(gpus))}
    return Cluster(arguments, processes or tasks, "Slurm")


def _tpu(environment: Mapping[str, str], processes: int | None) -> Cluster | None:
    """Returns how to join the hosts of TPU slices; None on a single host."""
    # GKE sets these variables. On other machines JAX asks the metadata server.
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get(
        "TPU_WORKER_HOSTNAMES"
    )
    known = hosts or "TPU_PROCESS_ADDRESSES_PATH" in environment
    if not known and "TPU_SKIP_MDS_QUERY" in environment:
        return None
    if processes is None and hosts:
        slices = _number(environment, "MEGASCALE_NUM_SLICES") or 1
        processes = len(hosts.split(",")) * slices
    return Cluster({}, processes, "TPU")


def _explicit(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    where: str,
    options: Mapping[str, Any],
) -> Cluster:
    """Returns how to join processes of which everything must be given.

    Raises:
      JcmError: if a part is missing, or the index is out of range.
    """
    if coordinator is None or processes is None or process is None:
        given = {"coordinator": coordinator, "processes": processes, "process": process}
        missing = next(name for name, value in given.items() if value is None)
        raise JcmError(
            "--coordinator, --processes and --process go together, and"
            f" --{missing} is missing ({where})"
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
        **options,
    }
    return Cluster(arguments, processes, where)


def _warn_without_srun(environment: Mapping[str, str]) -> None:
    tasks = _slurm_tasks(environment)
    if tasks > 1 and "SLURM_STEP_NODELIST" not in environment:
        logging.warning(
            "Slurm has %d tasks, but this program was not started with srun: it runs"
            " as a single process",
            tasks,
        )


def _number(environment: Mapping[str, str], name: str) -> int | None:
    """Returns an integer of the environment, or None if it is not set.

    Raises:
      JcmError: if it is not an integer.
    """
    text = environment.get(name, "")
    try:
        return int(text) if text else None
    except ValueError as error:
        raise JcmError(f"${name}={text!r} must be a whole number") from error


def on_tpu() -> bool:
    """Returns whether JAX would use TPU chips of this machine."""
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    chosen = os.environ.get("JAX_PLATFORMS", "tpu")
    return bool(
        chips and "tpu" in chosen and importlib.util.find_spec("libtpu") is not None
    )
