"""Tests of a full disk: an error of one line, and intact checkpoints."""

import os
import shutil
import subprocess
import sys

import pytest

from jcm.commands.train import train
from jcm.model.loading import load
from jcm.run import checkpoints
from jcm.runtime.errors import JcmError

# No file of the program can grow beyond the limit, as if the disk were full.
_PROGRAM = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from jcm import main
main.command_line()
"""


def _run(limit, *arguments):
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(limit), *arguments],
        # As many devices as here, so that JAX finds in its cache what is compiled. It
        # warns if it cannot write to the cache.
        env=os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1000"},
        capture_output=True,
        text=True,
        timeout=280,
    )


def _assert_one_line(done, *parts):
    assert done.returncode == 1, done.stderr
    # Messages of orbax and progress bars of tfds may follow.
    (line,) = (line for line in done.stderr.splitlines() if "jcm: " in line)
    assert all(part in line for part in parts), line


def test_a_checkpoint_that_does_not_fit_is_not_started(
    teacher, data_dir, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    shutil.copytree(teacher, run)
    config = load(run).config
    with config.unlocked():
        config.train.num_steps += 1
        config.data.dir = str(data_dir)
    usage = shutil.disk_usage(run)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    message = "cannot save step 9: .* only 0 MiB are free: free some space"
    with pytest.raises(JcmError, match=message):
        train(config, run)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["4", "8"]


def test_the_disk_is_full_while_preparing_data(tmp_path):
    done = _run(
        20_000,
        "--config=configs/digits_edm.py:smoke",
        f"--config.data.dir={tmp_path / 'data'}",
        f"--workdir={tmp_path / 'run'}",
    )
    _assert_one_line(done, "cannot prepare digits", "--config.data.dir")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("limit", [2_000, 20_000])
def test_the_disk_is_full_while_training(teacher, data_dir, tmp_path, limit):
    """The smaller limit stops the log, the larger one a file of a checkpoint."""
    run = tmp_path / "run"
    shutil.copytree(teacher, run)
    before = {
        p: p.read_bytes() for p in (run / "checkpoints").rglob("*") if p.is_file()
    }
    done = _run(
        limit,
        f"--workdir={run}",
        "--mode=train",
        "--config.train.num_steps=16",
        "--config.train.log_every=1",
        f"--config.data.dir={data_dir}",
    )
    _assert_one_line(done, "free some space", str(run))
    assert checkpoints.Checkpoints(run).latest_step == 8
    assert all(path.read_bytes() == content for path, content in before.items())
    assert load(run).kind == "diffusion"


def test_the_disk_is_full_while_downloading(tmp_path):
    source, target = tmp_path / "source", tmp_path / "new" / "target"
    source.write_bytes(bytes(100_000))
    program = (
        "import pathlib, resource, sys; from jcm.runtime import download, errors\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try: download.fetch(sys.argv[1], pathlib.Path(sys.argv[2]), '', 'help')\n"
        "except errors.JcmError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, source.as_uri(), str(target)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert f"cannot write {target} (" in done.stdout
    assert "free some space" in done.stdout
    assert not list(target.parent.iterdir())
