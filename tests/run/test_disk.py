"""Tests of a full disk: an error of one line, and intact checkpoints."""

import builtins
import errno
import io
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from jcm import data
from jcm.commands.evaluate import evaluate
from jcm.commands.sample import sample
from jcm.commands.train import train
from jcm.model.loading import load
from jcm.run import checkpoints, storage, writers
from jcm.runtime import disk, leftovers
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
    assert "Traceback" not in done.stderr and "orbax" not in done.stderr, done.stderr
    # A progress bar of tfds may be on the same line.
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
    message = "cannot save step 9: .* and 0.0 MiB are free: free some space"
    with pytest.raises(JcmError, match=message):
        train(config, run)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["4", "8"]


@pytest.fixture
def read_only(monkeypatch):
    """A function that makes a folder one in which nothing can be written."""

    def make(folder):
        def refuse(path):
            if pathlib.Path(os.fsdecode(path)).is_relative_to(folder):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fsdecode(path))

        def protect(module, name, writes):
            original = getattr(module, name)

            def protected(path, *args, **options):
                if isinstance(path, str | os.PathLike) and writes(path, args, options):
                    refuse(path)
                return original(path, *args, **options)

            monkeypatch.setattr(module, name, protected)

        def writes(path, args, options):
            mode = args[0] if args else options.get("mode", "r")
            return not set(mode) <= set("rbt")

        protect(io, "open", writes)
        protect(builtins, "open", writes)
        protect(os, "open", lambda path, args, _: args[0] & (os.O_RDWR | os.O_WRONLY))
        protect(os, "mkdir", lambda path, args, _: not os.path.exists(path))
        for name in ("unlink", "rmdir", "replace", "rename"):
            protect(os, name, lambda path, args, _: os.path.exists(path))

    return make


def _content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_complete_run_needs_no_write(scored, read_only, caplog):
    config, run = scored
    config = config.copy_and_resolve_references()
    config.sample.num_images = 2
    evaluate(config, run)
    sample(config, run)
    train(config, run)
    before = _content(run)
    read_only(run)
    with caplog.at_level("INFO", "absl"):
        train(config, run)
    assert f"{run} is complete: 8 steps" in caplog.text
    evaluate(config, run)
    sample(config, run)
    assert load(run).step == 8
    assert _content(run) == before
    with config.unlocked():
        config.train.num_steps += 1
    message = "cannot write .*run.json .Read-only file system.: .*use another folder"
    with pytest.raises(JcmError, match=message):
        train(config, run)
    config.sample.num_images = 3
    with pytest.raises(JcmError, match=r"cannot write .*3_images.*npz .Read-only file"):
        sample(config, run)
    assert _content(run) == before


def test_a_start_removes_what_kills_have_left(tiny, teacher, tmp_path):
    config, run = tiny("digits_edm"), tmp_path / "run"
    shutil.copytree(teacher, run)
    config.train.keep_checkpoints = 1
    name = leftovers.temporary_name("scores.md")
    unfinished = run / "snapshots" / "4.orbax-checkpoint-tmp" / "params"
    unfinished.mkdir(parents=True)
    for folder in (run, run / "samples", run / "earlier" / "1"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (run / ".mine.tmp").mkdir()
    (run / "snapshots" / "mine.orbax-checkpoint-tmp").mkdir()
    storage.begin(run)
    train(config, run)
    assert [path.name for path in run.rglob("*.tmp")] == [".mine.tmp"]
    assert [path.name for path in run.rglob("*-tmp")] == ["mine.orbax-checkpoint-tmp"]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["8"]


def test_preparing_data_removes_what_a_killed_preparation_has_left(data_config):
    folder = pathlib.Path(data_config.dir)
    for left in (
        "digits/incomplete.AB12CD_1.1.0",
        "image_folder/1/incomplete.C12345_1.1.0",
    ):
        (folder / left).mkdir(parents=True)
    mine = folder / "image_folder" / "2" / "incomplete.mine"
    mine.mkdir(parents=True)
    data.load(data_config)
    assert list((folder / "image_folder").iterdir()) == [mine.parent] and mine.exists()
    (prepared,) = (folder / "digits").iterdir()
    assert prepared.name[0].isdigit()


@pytest.mark.parametrize("how", ["moved", "full"])
def test_an_error_of_the_disk_names_file_and_remedy(tmp_path, how):
    folder = tmp_path / "run"
    folder.mkdir()
    writer = writers.JsonlWriter(folder / "metrics.jsonl")
    writer.write_scalars(1, {"loss": 1.0})
    if how == "moved":
        folder.rename(tmp_path / "other")
        message = (
            rf"{folder}/metrics.jsonl \(No such.*: {folder} does not exist any more"
        )
    else:
        os.dup2(os.open("/dev/full", os.O_WRONLY), writer._file.fileno())
        message = rf"{folder}/metrics.jsonl \(No space.*: free some space in {folder}"
    with pytest.raises(JcmError, match=message):
        writer.write_scalars(2, {"loss": 1.0})
    writer.close()


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(errno.EACCES, "no"), "this user may not write in {}, so use another"),
        (OSError(errno.EMFILE, "no"), "raise the number of open files"),
        (ValueError("x [os_error_code='28']"), "free some space in {}, or use another"),
        (RuntimeError("write: File too large"), "free some space in {}, or .*ulimit"),
        (ValueError("params are missing"), "free some space in {}, or use another"),
        (OSError(errno.EINVAL, "no"), "use another folder"),
    ],
)
def test_remedies(tmp_path, error, remedy):
    found = str(disk.cannot_write(tmp_path / "a", error))
    assert re.search(rf"cannot write {tmp_path}/a.*: {remedy.format(tmp_path)}", found)


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
