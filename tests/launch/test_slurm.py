import os
import shutil
import signal
import subprocess

import pytest
from scripts import (
    CIFAR10,
    ODD,
    ROOT,
    SLEEP,
    assert_one_line,
    calls,
    dry_runs,
    gpus,
    launch,
    make_environment,
    records,
    tools,
    wait_for,
    words,
)

SLURM = ROOT / "launch" / "slurm.sbatch"


@pytest.fixture
def dry(tmp_path):
    return dry_runs(tmp_path)


def test_slurm_reads_the_options():
    text = SLURM.read_text()
    head = text[: text.index("\nset -euo")]
    options = [line.split()[1] for line in head.splitlines() if "#SBATCH" in line]
    assert options == [
        "--job-name=jcm",
        "--output=%x-%j.log",
        "--open-mode=append",
        "--requeue",
        "--signal=B:TERM@300",
        "--nodes=1",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        "--cpus-per-task=8",
    ]


def test_dry_runs(dry, tmp_path):
    environment = make_environment(tmp_path / "env")
    for extra in ("base", "cuda"):  # This is the state after an installation.
        launch(
            *(ROOT / "launch" / "gpu.sh", "--workdir=w"),
            **{"cwd": tmp_path, "VIRTUAL_ENV": environment, "JCM_EXTRAS": extra},
            path=gpus(tmp_path / "driver"),
        )

    def run(*flags, **variables):
        return dry(SLURM, CIFAR10, *flags, VIRTUAL_ENV=environment, **variables)

    python = f"env JAX_PLATFORMS=cuda,cpu {environment}/bin/python -P -m jcm.main"
    main = f"{python} {CIFAR10}"
    assert run() == [
        f"env JCM_ROOT={ROOT} sbatch --nodes=1 --ntasks-per-node=8 --gpus-per-node=8"
        f" --cpus-per-task=8 {SLURM} {CIFAR10}",
        f"# srun --label --kill-on-bad-exit=0 --cpus-per-task=8 {main}",
    ]
    assert run("--workdir=a b", NODES=4, GPUS=2, CPUS=6) == [
        f"env JCM_ROOT={ROOT} sbatch --nodes=4 --ntasks-per-node=2 --gpus-per-node=2"
        f" --cpus-per-task=6 {SLURM} {CIFAR10} '--workdir=a b'",
        f"# srun --label --kill-on-bad-exit=0 --cpus-per-task=6 {main} '--workdir=a b'",
    ]
    (line,) = run(*ODD, SLURM_JOB_ID=7, SLURM_CPUS_PER_TASK=3)
    assert line.startswith(
        f"srun --label --kill-on-bad-exit=0 --cpus-per-task=3 {main}"
    )
    assert words(line)[-len(ODD) :] == ODD


def test_the_script_submits_itself(tmp_path):
    path = records(tools(tmp_path / "bin"), "sbatch", then='echo "$JCM_ROOT"')
    for name in ("env", "bash"):
        (path / name).symlink_to(shutil.which(name))
    done = launch(
        *(SLURM, CIFAR10, "--workdir=w"),
        **{"cwd": tmp_path, "path": path, "NODES": 2},
        VIRTUAL_ENV=make_environment(tmp_path / "env"),
    )
    assert done.stdout == f"{ROOT}\n", done.stderr
    (call,) = calls(path)
    assert call.startswith("sbatch --nodes=2 --ntasks-per-node=8 ")
    assert call.endswith(f"{SLURM} {CIFAR10} --workdir=w")


@pytest.fixture
def job(tmp_path):
    """Starts the job with a given srun and state from a copy, as Slurm does."""
    spool = tmp_path / "spool" / "slurm_script"
    spool.parent.mkdir()
    shutil.copy(SLURM, spool)
    environment = make_environment(tmp_path / "env")
    path = records(tmp_path / "bin", "scontrol", "scancel")

    def start(srun, state="RUNNING", **variables):
        records(path, "squeue", then=f"echo {state}")
        records(path, "srun", then=srun)
        records(path, "scancel", then='kill -TERM "$(cat "${0%/*}/pid")"')
        return subprocess.Popen(
            ["bash", spool, CIFAR10],
            cwd=tmp_path,
            env={
                "PATH": f"{path}:{os.environ['PATH']}",
                "VIRTUAL_ENV": str(environment),
                "SLURM_JOB_ID": "7",
                "JCM_ROOT": str(ROOT),
                "RETRY_SECONDS": "0",
                **variables,
            },
            stderr=subprocess.PIPE,
            text=True,
        )

    start.calls = lambda: calls(path)
    start.pid = path / "pid"
    return start


@pytest.mark.parametrize(
    "code, state, requeued",
    [
        (75, "RUNNING", True),
        (75, "COMPLETING", False),  # The job was cancelled.
        (0, "RUNNING", False),
        (1, "RUNNING", False),
        (143, "RUNNING", False),
    ],
)
def test_a_run_that_asks_to_resume_is_requeued(job, code, state, requeued):
    with job(f"exit {code}", state) as program:
        assert program.wait(timeout=60) == code
    srun = job.calls()[0].split()
    assert srun[0] == "srun"
    # A shell in between would not pass signals on.
    assert srun[srun.index("--cpus-per-task=8") + 1 : -1] == [
        *("env", "JAX_PLATFORMS=cuda,cpu"),
        *(str(job.pid.parents[1] / "env" / "bin" / "python"), "-P", "-m", "jcm.main"),
    ]
    assert srun[-1] == CIFAR10
    assert ("scontrol requeue 7" in job.calls()) == requeued


@pytest.mark.parametrize("code", [0, 75, 134])
def test_the_signal_reaches_the_tasks(job, code):
    waits = f"trap 'sleep 0.3; exit {code}' TERM; echo $$ >\"${{0%/*}}/pid\""
    with job(f"{waits}; {SLEEP}") as program:
        wait_for(job.pid.exists)
        program.send_signal(signal.SIGTERM)
        assert program.wait(timeout=60) == code
    assert "scancel --signal=TERM 7" in job.calls()
    # 134 means aborted at the end. The others have saved: the time limit was reached.
    assert ("scontrol requeue 7" in job.calls()) == (code != 0)


def test_the_signal_is_repeated_for_tasks_that_had_not_started(job):
    waits = "trap 'exit 75' TERM; echo $$ >\"${0%/*}/pid\""
    with job(f"{waits}; {SLEEP}", RESEND_SECONDS="0.2") as program:
        wait_for(job.pid.exists)
        scancel = job.pid.parent / "scancel"
        head, _, send = scancel.read_text().rpartition("kill")
        told = 'ls "$0.told" >/dev/null 2>&1 || { touch "$0.told"; exit 0; }'
        scancel.write_text(f"{head}{told}\nkill{send}")
        program.send_signal(signal.SIGTERM)
        assert program.wait(timeout=60) == 75
    assert job.calls().count("scancel --signal=TERM 7") >= 2
    assert "scontrol requeue 7" in job.calls()


def test_a_job_that_loses_a_task_starts_again(job):
    counts = 'echo >>"${0%/*}/starts"; starts=$(wc -l <"${0%/*}/starts"); '
    for ends, starts in (([137, 134, 0], 3), ([134] * 4, 4), ([137, 1], 2)):
        (job.pid.parent / "starts").unlink(missing_ok=True)
        codes = " ".join(map(str, ends))
        srun = f"{counts} set -- {codes}; shift $((starts - 1)); exit $1"
        with job(srun) as program:
            assert program.wait(timeout=60) == ends[-1]
        assert (job.pid.parent / "starts").read_text().count("\n") == starts
    assert not any("requeue" in call for call in job.calls())


def test_a_cancelled_job_saves_and_does_not_start_again(job):
    waits = "trap 'sleep 0.3; exit 75' TERM; echo $$ >\"${0%/*}/pid\""
    with job(f"{waits}; {SLEEP}") as program:
        wait_for(job.pid.exists)
        program.send_signal(signal.SIGUSR1)
        assert program.wait(timeout=60) == 75
    assert "scancel --signal=TERM 7" in job.calls()
    assert not any("requeue" in call for call in job.calls())


def test_a_request_to_a_busy_controller_is_repeated(job):
    waits = "trap 'sleep 0.3; exit 75' TERM; echo $$ >\"${0%/*}/pid\""
    with job(f"{waits}; {SLEEP}") as program:
        wait_for(job.pid.exists)
        for name in ("scancel", "squeue", "scontrol"):
            script = job.pid.parent / name
            fails = 'ls "$0.tried" >/dev/null 2>&1 || { touch "$0.tried"; exit 1; }'
            head, rest = script.read_text().split("\n", 1)
            script.write_text(f"{head}\n{fails}\n{rest}")
        program.send_signal(signal.SIGTERM)
        assert program.wait(timeout=60) == 75
    assert "scancel --signal=TERM 7" in job.calls()
    assert "scontrol requeue 7" in job.calls()


def test_without_slurm_the_error_says_where_to_submit(job, tmp_path):
    with job("exit 0", JCM_ROOT=str(tmp_path)) as program:
        assert program.wait(timeout=60) == 1
        message = program.stderr.read()
    assert message.count("\n") == 1 and "or set JCM_ROOT" in message
    done = launch(SLURM, CIFAR10, cwd=tmp_path, path=tools(tmp_path / "tools"))
    assert_one_line(done, "sbatch not found", "launch/gpu.sh")
