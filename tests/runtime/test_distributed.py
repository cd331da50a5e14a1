"""Tests of how a process finds the others from its environment."""

import ast
import os
import subprocess
import sys

import jax
import pytest

from jcm.runtime import cluster, distributed
from jcm.runtime.errors import JcmError

_SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NODELIST": "node[01-02]",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
}
_FLAGS = {
    "coordinator_address": "a:1",
    "num_processes": 4,
    "process_id": 2,
}
_GKE = {"TPU_WORKER_HOSTNAMES": "t-0.svc,t-1.svc", "TPU_WORKER_ID": "1"}
_ADDRESS = {"JAX_COORDINATOR_ADDRESS": "a:1"}


@pytest.mark.parametrize(
    ("environment", "flags", "on_tpu", "arguments", "expected"),
    [
        # Flags, variables of JAX, and both.
        ({}, ("a:1", 4, 2), False, _FLAGS, 4),
        (
            _ADDRESS | {"JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"},
            (),
            False,
            _FLAGS,
            4,
        ),
        (_ADDRESS | {"JAX_NUM_PROCESSES": "9"}, (None, 4, 2), False, _FLAGS, 4),
        (_SLURM, ("a:1", 4, 2), False, _FLAGS, 4),
        # An indexed Job of Kubernetes.
        (
            _ADDRESS
            | {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JAX_NUM_PROCESSES": "4"}
            | {"JOB_COMPLETION_INDEX": "2"},
            (),
            False,
            _FLAGS,
            4,
        ),
        # On Slurm, JAX finds the rest. A task that sees one GPU sees it as number 0.
        (_SLURM, (), False, {}, 16),
        (_SLURM, (None, 16, None), False, {}, 16),
        (
            _SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"},
            (),
            False,
            {},
            16,
        ),
        (
            _SLURM | {"CUDA_VISIBLE_DEVICES": "1"},
            (),
            False,
            {"local_device_ids": [0]},
            16,
        ),
        # A task that is alone on its node uses all GPUs that it sees. A shell in an
        # allocation is a separate step.
        (
            _SLURM
            | {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "2"}
            | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"},
            (),
            False,
            {"local_device_ids": [0, 1, 2, 3]},
            2,
        ),
        # JAX detects Open MPI 4. For version 5, jax 0.12 would need mpi4py.
        (
            {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://1.2.3:4"},
            (),
            False,
            {},
            4,
        ),
        (
            {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"},
            ("a:1",),
            False,
            _FLAGS | {"cluster_detection_method": "deactivate"},
            4,
        ),
        (
            {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"}
            | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://1.2.3:4"},
            ("a:1",),
            False,
            _FLAGS,
            4,
        ),
        # On GKE, the number of TPU hosts is known. On a VM, JAX asks for it.
        (_GKE, (), True, {}, 2),
        (_GKE | {"MEGASCALE_NUM_SLICES": "4"}, (), True, {}, 8),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1,c:1"}, (), True, {}, 3),
        ({}, (), True, {}, None),
        (
            {"TPU_PROCESS_ADDRESSES_PATH": "/hosts", "TPU_SKIP_MDS_QUERY": "1"},
            (),
            True,
            {},
            None,
        ),
        ({}, (None, 8), True, {}, 8),
    ],
)
def test_arguments_of_the_call_that_joins_the_processes(
    environment, flags, on_tpu, arguments, expected
):
    found = cluster.find(environment, *flags, on_tpu=on_tpu)
    assert (found.arguments, found.expected) == (arguments, expected)


@pytest.mark.parametrize(
    ("environment", "on_tpu"),
    [
        ({}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "2"}, False),
        (_SLURM | {"SLURM_NTASKS": "1"}, False),
        (_SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({k: v for k, v in _SLURM.items() if k != "SLURM_STEP_NODELIST"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        (_GKE, False),
        ({"TPU_SKIP_MDS_QUERY": "1"}, True),
    ],
)
def test_environments_of_a_single_process(environment, on_tpu):
    assert cluster.find(environment, on_tpu=on_tpu) is None


@pytest.mark.parametrize(
    ("environment", "flags", "message"),
    [
        ({}, ("a:1",), "--processes is missing"),
        ({}, (None, 4, 2), "--coordinator is missing"),
        ({}, ("a:1", 4, 4), "--process=4 must be from 0 to 3"),
        (_ADDRESS, (), "--processes is missing .JAX_COORDINATOR_ADDRESS"),
        (_ADDRESS | {"JAX_NUM_PROCESSES": "all"}, (), "JAX_NUM_PROCESSES='all'"),
        (
            {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"},
            (),
            "--coordinator is missing .Open MPI",
        ),
    ],
)
def test_inconsistent_settings_raise(environment, flags, message):
    with pytest.raises(JcmError, match=message):
        cluster.find(environment, *flags)


_SPY = """
import sys
import jax
from jcm import config
from jcm.commands import flags, parsing
from jcm.runtime import distributed
given = flags.values(parsing.parse(["train", *sys.argv[1:]]), flags.PROCESSES)
jax.distributed.initialize = lambda **found: print(sorted(found.items()))
distributed.initialize(config.base(), **given)
"""


def _spy(environment, *flags):
    done = subprocess.run(
        [sys.executable, "-c", _SPY, *flags],
        env={"JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.stdout.strip(), done.stderr.strip().split("\n")[-1]


def test_jax_is_called_once_and_the_number_of_processes_checked():
    timeouts = (
        "('heartbeat_timeout_seconds', 60), ('initialization_timeout', 22), "
        "('shutdown_timeout_seconds', 15)"
    )
    called, error = _spy(_SLURM, "--join_timeout=7")
    assert called == f"[{timeouts}]"
    # No process has joined, because JAX was not really called.
    assert error.endswith(
        "JcmError: expected 16 processes (Slurm), but JAX has joined 1: start 16, or"
        " correct --processes"
    )
    called, _ = _spy({}, "--coordinator=a:1", "--processes=4", "--process=2")
    assert "('coordinator_address', 'a:1')" in called and "'process_id', 2" in called
    assert _spy({}) == ("", "")


_FOUND = """
from jax._src import clusters
from jcm.runtime import cluster
import os
found = cluster.find(os.environ).arguments
names = ("coordinator_address", "num_processes", "process_id", "local_device_ids")
print(clusters.ClusterEnv.auto_detect_unset_distributed_params(
    *(found.get(name) for name in names), None, 5))
"""


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        (_SLURM, ("node01:62055", 16, 9, [1])),
        (_SLURM | {"CUDA_VISIBLE_DEVICES": "3"}, ("node01:62055", 16, 9, [0])),
        (
            {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"}
            | {"OMPI_COMM_WORLD_LOCAL_RANK": "1"}
            | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.96.0.1:4"},
            ("10.96.0.1:6", 4, 2, [1]),
        ),
    ],
)
def test_what_jax_detects(environment, found):
    done = subprocess.run(
        [sys.executable, "-c", _FOUND],
        env={"JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    address, *rest = ast.literal_eval(done.stdout)
    assert address.startswith(found[0]) and tuple(rest) == found[1:]


def test_requested_gpus_must_exist():
    if jax.default_backend() != "cpu":
        pytest.skip("this machine has GPUs")
    _, error = _spy({"JAX_PLATFORMS": "cuda,cpu"})
    assert "JAX_PLATFORMS=cuda,cpu, but there is no NVIDIA GPU" in error


def test_which_errors_may_come_from_a_lost_process():
    lost = jax.errors.JaxRuntimeError("UNKNOWN: Connection closed by peer")
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    saving = JcmError("cannot save step 3")
    assert distributed._may_be_lost_process(
        lost
    ) and not distributed._may_be_lost_process(full)
    assert not distributed._may_be_lost_process(saving)
    saving.__cause__ = lost
    assert distributed._may_be_lost_process(saving)
    # JAX raises the errors of its collectives on CPUs as they are.
    gloo = "UNKNOWN: Gloo AllGather failed: Connection closed by peer [127.0.0.1]:54483"
    assert distributed._may_be_lost_process(ValueError(gloo))
    assert not distributed._may_be_lost_process(ValueError("a wrong value"))


def test_a_single_process_has_nothing_to_agree_on():
    with distributed.fail_together():
        pass
    name = os.fsdecode(b"caf\xe9.png")
    for error in (OSError("broken"), MemoryError(), TimeoutError(), JcmError(name)):
        with pytest.raises(type(error)) as info, distributed.fail_together():
            raise error
        assert info.value is error
    distributed.check_equal({"a": 1})
