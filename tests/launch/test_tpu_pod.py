import os
import signal
import sys

import pytest
from scripts import (
    CIFAR10,
    ODD,
    ROOT,
    SLEEP,
    assert_one_line,
    dry_runs,
    executable,
    launch,
    make_clone,
    records,
    tools,
    tpu,
    wait_for,
    words,
)

TPU = ROOT / "launch" / "tpu_pod.sh"
WORKER = ROOT / "launch" / "worker.sh"
PROJECT = {"PROJECT": "p", "ZONE": "z"}


@pytest.fixture
def dry(tmp_path):
    return dry_runs(tmp_path)


@pytest.mark.parametrize(
    "variables, commands",
    [
        (
            {},
            "tpu-vm create jcm --version=v2-alpha-tpuv5-lite"
            " --accelerator-type=v5litepod-16",
        ),
        (
            {"SPOT": 1, "TPU": "mine", "TYPE": "v4-32"},
            "tpu-vm create mine --version=tpu-ubuntu2204-base"
            " --accelerator-type=v4-32 --spot",
        ),
        (
            {"QUEUED": 1, "TYPE": "v5p-32"},
            "queued-resources create jcm --node-id=jcm --runtime-version=v2-alpha-tpuv5"
            " --accelerator-type=v5p-32",
        ),
        (
            {"SLICES": 2, "SPOT": 1, "TYPE": "v6e-16"},
            "queued-resources create jcm --node-count=2"
            " --runtime-version=v2-alpha-tpuv6e --accelerator-type=v6e-16 --spot",
        ),
        (
            {"VERSION": "new", "SPOT": 0, "QUEUED": 0},
            "tpu-vm create jcm --version=new --accelerator-type=v5litepod-16",
        ),
    ],
)
def test_tpus_are_requested(dry, variables, commands):
    gcloud = [f"gcloud compute tpus {commands} --network=n --project=p --zone=z"]
    assert dry(TPU, "create", "--network=n", **PROJECT, **variables) == gcloud


@pytest.mark.parametrize(
    "variables, group, workers, state, force",
    [
        ({}, "tpu-vm", "--worker=all", "state", ""),
        (
            {"SLICES": 2, "SSH_FLAGS": "--internal-ip --plain"},
            *("queued-resources", "--worker=all --node=all --internal-ip --plain"),
            *("state.state", " --force"),
        ),
    ],
)
def test_sub_commands(dry, variables, group, workers, state, force):
    gcloud, end = f"gcloud compute tpus {group}", "--project=p --zone=z"
    ssh = f"{gcloud} ssh jcm {workers}"

    def run(*arguments):
        return dry(TPU, *arguments, **PROJECT, **variables)

    archive = f"{ROOT}/build/jcm.tar.gz"
    assert run("install", "--quiet") == [
        f"mkdir -p {ROOT}/build",
        f"tar -czf {archive} --exclude=__pycache__ -C {ROOT}"
        " LICENSE README.md configs jcm launch pyproject.toml setup.cfg",
        f"{gcloud} scp {archive} jcm: {workers} --quiet {end}",
        f"{ssh} --quiet '--command=rm -rf jcm/configs jcm/jcm jcm/launch &&"
        " mkdir -p jcm && tar -xzf jcm.tar.gz -C jcm &&"
        f" bash jcm/launch/worker.sh install' {end}",
    ]
    assert run("run", CIFAR10, "--workdir=gs://b/w") == [
        f"{ssh} '--command=cd jcm && bash launch/worker.sh start .venv/bin/python -P"
        f" -m jcm.main {CIFAR10} --workdir=gs://b/w' {end}"
    ]
    assert run("status") == [
        f"{gcloud} describe jcm '--format=value({state})' {end}",
        f"{ssh} '--command=bash jcm/launch/worker.sh status' {end}",
    ]
    first = ssh.replace("all", "0", 1).replace(" --node=all", "")
    assert run("log") == [f"{first} '--command=tail -n 100 -F jcm.log' {end}"]
    assert run("stop") == [
        f"{ssh} '--command=bash jcm/launch/worker.sh stop' {end}",
    ]
    assert run("delete", "--quiet") == [f"{gcloud} delete jcm{force} --quiet {end}"]


@pytest.mark.parametrize(
    "flags, workdir",
    [
        ([CIFAR10], "gs://b/runs/cifar10_cd"),
        (["--config", "configs/cifar10_cd.py:smoke"], "gs://b/runs/cifar10_cd_smoke"),
        ([CIFAR10, "--workdir=w"], None),
        (["--workdir", "w", "--mode=sample"], None),
    ],
)
def test_runs_without_a_workdir_go_to_the_bucket(dry, flags, workdir):
    added = [f"--workdir={workdir}"] if workdir else []
    (line,) = dry(TPU, "run", *flags, BUCKET="b", **PROJECT)
    (remote,) = [word for word in words(line) if word.startswith("--command=")]
    assert remote.endswith(" ".join(["-m jcm.main", *flags, *added]))


def test_errors_name_what_is_missing(tmp_path):
    path = tools(tmp_path / "tools")

    def run(*arguments, script=TPU, **variables):
        variables = {"PROJECT": "p", "ZONE": "z", **variables}
        return launch(script, *arguments, cwd=tmp_path, path=path, **variables)

    assert_one_line(run("create", PROJECT=""), "tpu_pod.sh: PROJECT is not set: set it")
    assert_one_line(run("stop", ZONE=""), "tpu_pod.sh: ZONE is not set: set it")
    assert_one_line(run("stop"), "gcloud not found: install")
    assert_one_line(run("sotp"), "unknown command sotp", "--help")
    assert_one_line(run("stop", SLICES="no"), "SLICES=no must be")
    done = run("sotp", script=WORKER, HOME=tmp_path)
    assert_one_line(done, "worker.sh: unknown command sotp", "--help")
    done = run("run", CIFAR10, DRY_RUN=1)
    assert_one_line(done, "BUCKET", "--workdir=gs://")
    for config in ("mine.py", f"{ROOT}/configs/cifar10_cd.py"):
        done = run("run", f"--config={config}", DRY_RUN=1)
        assert_one_line(done, f"no {config} in the repository")
    done = run("run", "--mode=sample", DRY_RUN=1)
    assert_one_line(done, "neither --config nor --workdir is given")


# Takes the place of Python on a worker. Training ends with the exit codes that the file
# "codes" lists; "wait" stands for a run that is stopped.
WORKER_PYTHON = """#!/usr/bin/env bash
cd "$HOME"
case "$*" in
"-m venv"*)
  mkdir -p "$4/bin"
  cp "$0" "$4/bin/python"
  touch "$4/bin/pip" ;;
*"pip install"*) echo "$@" >>installed ;;
*"-m pip"* | *"import jcm.main"*) ;;
*"-m jcm.main"*)
  printf '%s\\0' "$@" >arguments
  echo >>starts
  code=$(sed -n "$(wc -l <starts)p" codes)
  [[ $code != wait ]] || { trap 'exit 75' TERM; {sleep}; }
  exit "$code" ;;
*) exec "{real}" "$@" ;;
esac
""".replace("{real}", sys.executable).replace("{sleep}", SLEEP)


@pytest.fixture
def worker(tmp_path):
    """A worker of a TPU, to which gcloud copies files and where it runs commands."""
    home = tmp_path / "worker"
    home.mkdir()
    path = tmp_path / "bin"
    records(
        path,
        "gcloud",
        then=f"""
        export HOME='{home}'
        [[ $4 != scp ]] || cp "$5" "$HOME"
        for argument in "$@"; do
          case $argument in
          --command=*) cd "$HOME" && exec bash -c "${{argument#*=}}" ;;
          esac
        done
        """,
    )
    executable(path / "python3", WORKER_PYTHON)
    executable(path / "grep", f"#!/bin/sh\necho {tpu(tmp_path / 'tpu')}\n")
    clone = make_clone(tmp_path / "clone")

    def run(*arguments, codes=""):
        if codes:
            (home / "codes").write_text("\n".join(codes.split()) + "\n")
        return launch(
            *(clone / "launch" / "tpu_pod.sh", *arguments),
            **{"cwd": tmp_path, "path": f"{path}:{os.environ['PATH']}", **PROJECT},
            WAIT=20,
        )

    run.home, run.clone = home, clone
    run.starts = lambda: (home / "starts").read_text().count("\n")
    yield run
    run("stop")


def ended(worker):
    wait_for(lambda: "no program is running" in worker("status").stdout)
    return worker("status").stdout.splitlines()[-1]


def test_workers_get_the_repository(worker):
    (worker.clone / "jcm" / "gone.py").touch()
    assert worker("install").returncode == 0
    assert (worker.home / "jcm" / "jcm" / "gone.py").exists()
    (worker.clone / "jcm" / "gone.py").unlink()
    (worker.clone / "jcm" / "new.py").touch()
    done = worker("install")
    assert done.returncode == 0, done.stderr
    found = {path.name for path in (worker.home / "jcm" / "jcm").iterdir()}
    assert found == {"a.py", "new.py"}
    *_, line = (worker.home / "installed").read_text().splitlines()
    assert line.endswith("-e .[tpu,gcs]")


@pytest.mark.parametrize(
    "codes, starts",
    [
        ("75 75 0", 3),
        ("0", 1),
        ("1", 1),
        ("143", 1),  # A SIGTERM from elsewhere.
        ("137 139 75 134 137 139 0", 7),
        ("134 134 137 134", 4),
    ],
)
def test_a_run_starts_again_as_long_as_it_asks_to(worker, codes, starts):
    assert worker("install").returncode == 0
    done = worker("run", "--config=configs/a.py", "--workdir=w", *ODD, codes=codes)
    assert done.returncode == 0, done.stderr
    assert "started, the log is" in done.stdout
    assert ended(worker).endswith(f"exited with code {codes.split()[-1]}")
    assert worker.starts() == starts
    arguments = (worker.home / "arguments").read_text().split("\0")[:-1]
    main = ["-P", "-m", "jcm.main", "--config=configs/a.py", "--workdir=w"]
    assert arguments == main + ODD


@pytest.mark.parametrize("codes, starts", [("75 75 0", 3), ("1", 1), ("75 7", 2)])
def test_the_loop_ends_with_the_last_code(codes, starts, tmp_path):
    (tmp_path / "codes").write_text("\n".join(codes.split()) + "\n")
    python = executable(tmp_path / "python", WORKER_PYTHON)
    command = ("loop", python, "-m", "jcm.main")
    done = launch(WORKER, *command, cwd=tmp_path, HOME=tmp_path)
    assert done.returncode == int(codes.split()[-1])
    assert (tmp_path / "starts").read_text().count("\n") == starts


def test_a_stopped_run_does_not_start_again(worker):
    assert worker("install").returncode == 0
    assert "no program is running" in worker("stop").stdout
    run = ("run", "--config=configs/a.py", "--workdir=w")
    assert worker(*run, codes="wait wait").returncode == 0
    wait_for((worker.home / "starts").exists)
    assert "running (process" in worker("status").stdout
    done = worker(*run, codes="wait wait")
    assert_one_line(done, "worker.sh: a program is running already", "stop it first")
    done = worker("stop")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("exited with code 75")
    assert worker.starts() == 1
    # The same `run` resumes it.
    assert worker(*run, codes="- 0").returncode == 0
    assert ended(worker).endswith("exited with code 0")
    assert worker.starts() == 2


def test_stop_reaches_a_program_whose_loop_was_killed(worker):
    assert worker("install").returncode == 0
    run = ("run", "--config=configs/a.py", "--workdir=w")
    assert worker(*run, codes="wait").returncode == 0
    wait_for((worker.home / "starts").exists)
    os.kill(int((worker.home / "jcm.pid").read_text()), signal.SIGKILL)
    assert "running" in worker("status").stdout
    assert "stopped" in worker("stop").stdout
    assert "no program is running" in worker("status").stdout


def test_worker_dry_runs(dry, tmp_path):
    home = {"HOME": tmp_path}
    venv = f"{ROOT}/.venv"
    assert dry(WORKER, "install", **home) == [
        "python3 -m pip install -q --user uv",
        "python3 -m uv python install -q 3.12",
        f"python3.12 -m venv --clear {venv}",
        f"(cd {ROOT} && {venv}/bin/python -m pip install -q --no-compile"
        " --disable-pip-version-check -e '.[tpu,gcs]')",
    ]
    (line,) = dry(WORKER, "start", "a", "b c", **home)
    assert line.startswith("setsid ")
    assert line.endswith(
        f" {WORKER} loop a 'b c' </dev/null >>{tmp_path}/jcm.log 2>&1 &"
    )
    assert dry(WORKER, "loop", "a", "b c", **home) == ["a 'b c'"]
    assert dry(WORKER, "status", **home) == [f"tail -n 5 {tmp_path}/jcm.log"]
    assert dry(WORKER, "stop", **home) == [
        f'kill -TERM -- "-$(cat {tmp_path}/jcm.pid)"',
    ]
