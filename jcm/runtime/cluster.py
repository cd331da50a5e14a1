"""Which other processes there are, by flags and by what the environment says."""

import dataclasses
import functools
import glob
import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from absl import logging

from jcm.runtime.errors import JcmError


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


def find(
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


def on_tpu() -> bool:
    """Whether JAX would use TPU chips of this machine."""
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    chosen = os.environ.get("JAX_PLATFORMS", "tpu")
    return bool(
        chips and "tpu" in chosen and importlib.util.find_spec("libtpu") is not None
    )
