"""Helpers to run copies of launch/ with fake versions of the programs it calls."""

import os
import shutil
import subprocess
import sys
import time

from paths import ROOT

CIFAR10 = "--config=configs/cifar10_cd.py"
# Arguments that a shell or Kubernetes could change.
ODD = ["", "a  b", "it's", '"', "\\", "$HOME $(HOME) $$", "*", "a\nb\tc", "é", "(0, 1)"]

# Takes the place of the Python of an environment. It prints what it would run, and
# records what it would install.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
*"pip install"*) echo "$@" >>"$(dirname "$0")/installed" ;;
*"-m pip"* | *"import jcm.main"*) ;;
*" -m "* | "-m "*) printf '%s\\n' "$PWD" "$@" ;;
*) exec "{real}" "$@" ;;
esac
"""

# Waits for a signal. It ends after a while, so that a failed test leaves no process.
SLEEP = "for _ in $(seq 400); do sleep 0.05; done"


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def make_clone(folder):
    """Copies the part of the repository that the scripts need."""
    shutil.copytree(ROOT / "launch", folder / "launch")
    for name in ("LICENSE", "README.md", "pyproject.toml", "setup.cfg"):
        shutil.copy(ROOT / name, folder)
    for name in ("configs", "jcm"):
        (folder / name).mkdir()
        (folder / name / "a.py").touch()
    return folder


def make_environment(folder):
    """Creates an environment whose Python is the fake one."""
    executable(folder / "bin" / "python", FAKE_PYTHON.format(real=sys.executable))
    return folder


def launch(script, *args, cwd, path=os.environ["PATH"], **variables):
    variables = {name: str(value) for name, value in variables.items()}
    return subprocess.run(
        [shutil.which("bash"), str(script), *args],
        cwd=cwd,
        env={"PATH": str(path), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def tools(folder):
    """Creates a folder for PATH with the tools of the scripts, but without Python."""
    folder.mkdir()
    for name in ("basename", "cat", "dirname"):
        (folder / name).symlink_to(shutil.which(name))
    return folder


def gpus(folder, count=1):
    """Creates an nvidia-smi that lists some GPUs, and returns a PATH that has it."""
    lines = "; ".join(f"echo 'GPU {i}: NVIDIA X'" for i in range(count))
    ending = lines or "echo 'No devices were found'; exit 6"
    executable(folder / "nvidia-smi", f"#!/bin/sh\n{ending}\n")
    return f"{folder}:{os.environ['PATH']}"


def tpu(folder, kind="0x120000"):
    """Creates a PCI device by Google of some class, and returns its file `vendor`."""
    folder.mkdir()
    (folder / "vendor").write_text("0x1ae0\n")
    (folder / "class").write_text(f"{kind}\n")
    return folder / "vendor"


def assert_one_line(done, *parts):
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and done.stdout == ""
    for part in parts:
        assert part in done.stderr


def lines_of(done):
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def words(line):
    """Returns the arguments that bash reads from a line."""
    program = ["bash", "-c", f"printf '%s\\0' {line}"]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def files(folder):
    return sorted(path for path in folder.rglob("*"))


def records(folder, *names, then=""):
    """Creates programs that record their arguments in a file, one call per line."""
    note = '#!/usr/bin/env bash\necho "$(basename "$0") $*" >>"${0%/*}/calls"\n'
    for name in names:
        executable(folder / name, note + then)
    return folder


def calls(folder):
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(condition):
    for _ in range(400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("nothing happened in 20 seconds")


def dry_runs(tmp_path):
    """Returns a function that makes a dry run and returns the lines it prints.

    It checks that no file is created.
    """
    names = "gcloud kubectl docker sbatch srun scontrol tar mkdir".split()
    path = records(tools(tmp_path / "tools"), *names)

    def run(script, *flags, **variables):
        before = files(tmp_path)
        variables = {"DRY_RUN": 1, **variables}
        done = launch(script, *flags, cwd=tmp_path, path=path, **variables)
        assert files(tmp_path) == before
        return lines_of(done)

    return run
