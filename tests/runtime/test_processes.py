"""Tests of two processes on one machine, which must make the same run as one."""

import collections
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import stand_in
from paths import ROOT
from PIL import Image

import jcm
from jcm import data
from jcm.commands import evaluate
from jcm.commands.train import train
from jcm.metrics import scores
from jcm.model.loading import load

_CONFIGS = ROOT / "configs"


def _free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _start(
    config,
    workdir,
    port,
    process,
    cwd=None,
    program=("-m", "jcm.main"),
    then=(),
    **changes,
):
    """Starts one of two processes, with two CPU devices, as a user would."""
    fields = {
        "data.dir": config.data.dir,
        "model.ch_mult": config.model.ch_mult,
        "sample.steps": config.sample.steps,
        **changes,
    }
    kind = "cd" if config.method == "cd" else "edm"
    return subprocess.Popen(
        [
            *(sys.executable, *program),
            f"--config={_CONFIGS}/digits_{kind}.py:smoke",
            f"--workdir={workdir}",
            f"--coordinator=localhost:{port}",
            "--processes=2",
            f"--process={process}",
            *(f"--config.{name}={value}" for name, value in fields.items()),
            *then,
        ],
        # Each has its own cache, as on two machines.
        env=os.environ
        | {"JAX_NUM_CPU_DEVICES": "2"}
        | {"JCM_CACHE": str(pathlib.Path(workdir).parent / f"cache{process}")},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _lines(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.timeout(600)  # Several runs of two processes, on two cores.
def test_two_processes_make_the_same_run_as_one(student, tmp_path, monkeypatch):
    config, alone = student
    # One of them has the statistics of the real images already.
    monkeypatch.setenv("JCM_CACHE", str(tmp_path / "cache1"))
    monkeypatch.setattr("jcm.metrics.networks.load", stand_in.load)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.eval.scores, config.eval.num_images = ("fd_efficientnet_lite0",), 64
    (score,) = scores.create(config, data.load(config.data))
    score.prepare()
    port = _free_port()
    changes = {
        "teachers.diffusion": config.teachers.diffusion,
        "eval.scores": "('fd_efficientnet_lite0',)",
        "eval.num_images": 64,
    }
    # Each makes a share of the samples. 21 are not divisible, but all are made once.
    then = ["--then", "sample", f"--workdir={tmp_path / 'run'}"]
    pair = [
        _start(
            *(config, tmp_path / "run", port, process),
            program=[stand_in.__file__],
            then=[*then, "--config.sample.num_images=21"],
            **changes,
        )
        for process in (0, 1)
    ]
    outputs = [process.communicate(timeout=480)[0] for process in pair]
    for process, output in zip(pair, outputs, strict=True):
        assert process.returncode == 0, output
    # One process with eight devices and two with two devices give the same numbers.
    ours, theirs = _lines(tmp_path / "run"), _lines(alone)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for name in ("loss", "grad_norm", "update_norm"):
        np.testing.assert_allclose(
            [line[name] for line in ours], [line[name] for line in theirs], rtol=1e-4
        )
    trained = (load(place).params for place in (tmp_path / "run", alone))
    for a, b in zip(*map(jax.tree.leaves, trained), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    # Process 0 writes logs and pictures. The other one reports errors only.
    assert "comparison.png" in outputs[0] and "comparison.png" not in outputs[1]
    written = (tmp_path / "run" / "samples").glob("step_????????.*")
    names = sorted(path.name for path in written)
    assert names == ["step_00000004.png", "step_00000008.png"]
    for step in (4, 8):
        ours, theirs = (
            np.asarray(Image.open(place / "samples" / f"step_{step:08d}.png"), int)
            for place in (tmp_path / "run", alone)
        )
        # The weights, and therefore the pixels, differ by rounding.
        assert np.abs(ours - theirs).max() <= 2
        assert np.std(ours) > 20
    assert len(list((tmp_path / "cache0" / "reference").iterdir())) == 1
    (path,) = (tmp_path / "run" / "samples").glob("step_*_seed_0_2_steps_21_*.npz")
    with np.load(path) as file:
        samples = file["arr_0"]
    expected = jcm.to_uint8(jcm.load(tmp_path / "run").sample(21))
    assert len(np.unique(samples, axis=0)) == len(samples) == 21
    # Other devices may change the last bit of a float.
    assert np.abs(samples.astype(int) - expected).max() <= 1
    assert np.mean(samples != expected) < 0.01
    by_two = json.loads((tmp_path / "run" / "scores.json").read_text())["rows"]
    shutil.rmtree(tmp_path / "run" / "evaluation")
    evaluate.evaluate(config, tmp_path / "run")
    by_one = json.loads((tmp_path / "run" / "scores.json").read_text())["rows"]
    for ours, theirs in zip(by_two, by_one, strict=True):
        assert ours["samples"] == theirs["samples"]
        assert ours["scores"]["fd_efficientnet_lite0"] == pytest.approx(
            theirs["scores"]["fd_efficientnet_lite0"], rel=1e-3
        )


_SHARES = """
import sys
import jax, numpy as np
from jcm import config as config_lib, data
from jcm.runtime import distributed, sharding
coordinator, process, folder = sys.argv[1:]
config = config_lib.load("configs/digits_edm.py:smoke")
config.data.dir = folder
where = {"coordinator": coordinator, "processes": 2, "process": int(process)}
distributed.initialize(config, **where)
place = sharding.batch(sharding.make_mesh())
stream = data.batches(data.load(config.data), 10, seed=3, flip=False, workers=0,
    rows=sharding.rows(place, 10))
# 180 batches of ten: an epoch of 1,797 and three pictures of the next.
images = np.concatenate([next(stream)["image"] for _ in range(180)])
everyone = distributed.gather(images)
if jax.process_index() == 0:
    np.save(folder + "/shares.npy", everyone)
"""


def test_the_shares_of_two_processes_make_an_epoch(data_dir, digit_set):
    port = _free_port()
    pair = [
        subprocess.Popen(
            [
                *(sys.executable, "-c", _SHARES, f"localhost:{port}"),
                *(str(process), str(data_dir)),
            ],
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
        )
        for process in (0, 1)
    ]
    assert [process.wait(timeout=200) for process in pair] == [0, 0]
    shares = np.load(data_dir / "shares.npy")
    assert shares.shape == (2, 900, 8, 8, 1)
    # This is the order of the global batches, with five images of each process.
    order = shares.reshape(2, 180, 5, -1).transpose(1, 0, 2, 3).reshape(1800, -1)
    seen = collections.Counter(image.tobytes() for image in order[:1797])
    there = collections.Counter(
        image.tobytes() for image in digit_set.arrays()["image"]
    )
    assert len(there) > 1700 and seen == there


def _until(condition, processes, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), [
            process.communicate()[0] for process in processes
        ]
        time.sleep(0.05)


def _last_step(workdir):
    path = workdir / "metrics.jsonl"
    return _lines(workdir)[-1]["step"] if path.exists() and path.read_text() else 0


def test_all_processes_end_if_one_is_stopped_or_lost(tiny, teacher, tmp_path):
    config, run = tiny("digits_edm"), tmp_path / "run"
    shutil.copytree(teacher, run)  # One process has written it.
    endless = {
        "train.num_steps": 10**6,
        "train.checkpoint_every": 0,
        "train.sample_every": 0,
        "train.log_every": 1,
        "eval.scores": "()",
        # No process holds a whole tensor.
        "mesh.fsdp": 4,
        "mesh.fsdp_min_mib": 0.002,
    }
    port = _free_port()
    pair = [_start(config, run, port, process, **endless) for process in (0, 1)]
    _until(lambda: _last_step(run) > 12, pair)
    pair[1].terminate()
    outputs = [process.communicate(timeout=60)[0] for process in pair]
    assert [process.returncode for process in pair] == [75, 75], outputs
    (saved,) = {int(re.findall(r"after step (\d+)", text)[0]) for text in outputs}
    assert "resuming from step 8" in outputs[0]
    assert (run / "checkpoints" / str(saved)).is_dir()
    # They start again, and process 0 is killed.
    port = _free_port()
    pair = [_start(config, run, port, process, **endless) for process in (0, 1)]
    _until(lambda: _last_step(run) > saved + 4, pair)
    pair[0].kill()
    lost = time.monotonic()
    output, _ = pair[1].communicate(timeout=100)
    assert time.monotonic() - lost < 75
    assert pair[1].returncode == 128 + signal.SIGABRT, output
    assert output.splitlines()[-1].startswith("jcm: process 0, or the connection to")
    assert f"resuming from step {saved}" in output
    pair[0].communicate()
    # One process resumes what two have written, and gives the same numbers.
    numbers = {line["step"]: line for line in _lines(run)}
    alone = config.copy_and_resolve_references()
    alone.train.num_steps, alone.train.log_every = saved + 3, 1
    train(alone, run)
    for line in _lines(run)[-3:]:
        assert line["loss"] == pytest.approx(numbers[line["step"]]["loss"], rel=1e-5)
        assert line["param_norm"] == pytest.approx(
            numbers[line["step"]]["param_norm"], rel=1e-5
        )


def test_a_workdir_that_is_not_shared_raises(tiny, tmp_path):
    config, port = tiny("digits_edm"), _free_port()
    pair = []
    for process in (0, 1):
        # The same command runs on machines with separate disks.
        folder = tmp_path / str(process)
        folder.mkdir()
        pair.append(
            _start(config, "run", port, process, cwd=folder, **{"eval.scores": "()"})
        )
    for process, output in enumerate(each.communicate(timeout=200)[0] for each in pair):
        assert pair[process].returncode == 1, output
        assert "is not the folder that process 0 writes in" in output, output


def test_different_configs_raise_before_the_first_step(tiny, tmp_path):
    config, port = tiny("digits_edm"), _free_port()
    pair = [
        _start(config, tmp_path / "run", port, process, seed=process)
        for process in (0, 1)
    ]
    for process in pair:
        output, _ = process.communicate(timeout=100)
        assert process.returncode == 1
        assert "jcm: process 1 has config.seed=1 and process 0 has 0: start" in output
    assert not (tmp_path / "run").exists()


_FAILS = """
import os, signal, sys, threading, time
import jax, numpy as np
from jcm import config
from jcm.commands import cli
from jcm.runtime import distributed
from jcm.runtime.errors import JcmError
_, port, process, which, how = sys.argv
with cli.errors_in_one_line(), cli.on_devices():
    distributed.initialize(
        config.base(),
        coordinator=f"localhost:{port}",
        processes=2,
        process=int(process),
        heartbeat_timeout=15,
    )
    if process == which and how != "late":
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "sigterm":
            os.kill(os.getpid(), signal.SIGTERM)
        if how == "thread":
            taken = JcmError("taken")
            threading.Thread(target=distributed.exit_all, args=[taken]).start()
            time.sleep(60)
        raise JcmError("broken here") if how == "mistake" else MemoryError()
    distributed.gather(np.zeros(1))  # waits for the other
    if process == which:
        time.sleep(2)  # the other has ended, and waits for this one
        os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize(
    ("which", "how"),
    [
        (0, "mistake"),
        (1, "bug"),
        (1, "killed"),
        (1, "sigterm"),
        (1, "late"),
        (0, "thread"),
    ],
)
def test_if_one_process_ends_early_the_others_end(which, how):
    port = _free_port()
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", _FAILS, *map(str, (port, process, which, how))],
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in (0, 1)
    ]
    # This includes the time to start. Without the message they would wait forever.
    outputs = [process.communicate(timeout=100)[0] for process in pair]
    codes = [process.returncode for process in pair]
    other = outputs[1 - which]
    if how == "killed":
        # The launchers start such a run again; see launch/worker.sh.
        assert codes[which] == -signal.SIGKILL
        assert codes[1 - which] == 128 + signal.SIGABRT, other
        assert other.splitlines()[-1].startswith("jcm: process 1 was lost (it gives")
        assert other.endswith("and the same commands resume the run\n")
    else:
        reason = {
            "mistake": "broken here",
            "bug": "MemoryError",
            "sigterm": "stopped by SIGTERM; the same command resumes from here",
            "late": "stopped by SIGTERM; the same command resumes from here",
            "thread": "taken",
        }[how]
        assert codes == ([75, 75] if how in ("sigterm", "late") else [1, 1]), outputs
        assert not any("Traceback" in output for output in outputs) or how == "bug"
        assert f"jcm: process {which}: {reason}\n" in other
        assert reason in outputs[which]


@pytest.mark.parametrize("process", [0, 1])
def test_waiting_for_the_others_ends_with_an_error_of_one_line(process, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "jcm.main"),
            *("--config=configs/digits_edm.py:smoke", f"--workdir={tmp_path / 'run'}"),
            *(f"--coordinator=localhost:{_free_port()}", "--processes=2"),
            *(f"--process={process}", "--join_timeout=2"),
        ],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if "jcm: " in line)
    assert "cannot join the processes (localhost:" in line
    assert "timeout of 2 s" in line and "--join_timeout" in line


@pytest.mark.parametrize("given", [["--process=0"], ["--processes=2", "--process=2"]])
def test_inconsistent_flags_are_an_error_of_one_line(given, tmp_path, command):
    if len(given) > 1:
        given = [*given, f"--coordinator=localhost:{_free_port()}"]
    config = "--config=configs/digits_cd.py:smoke"
    done = command("train", config, f"--workdir={tmp_path}", *given)
    assert done.code == 1
    assert done.err.startswith("jcm: ") and done.err.count("\n") == 1
