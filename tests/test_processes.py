"""Two real processes on one machine make the same run as one."""

import json
import os
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from jcm import data, evaluate, model
from jcm.metrics import scores


def _free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _start(config, workdir, port, process, processes=2):
    """`python -m jcm.main` as a user would call it, with one CPU device."""
    fields = {
        "teacher": config.teacher,
        "data.dir": config.data.dir,
        "model.num_res_blocks": config.model.num_res_blocks,
        "model.attn_resolutions": "()",
        "sample.steps": config.sample.steps,
        "eval.scores": "('fd_efficientnet_lite0',)",
    }
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "jcm.main", "--config=configs/digits_cd.py:smoke"),
            f"--workdir={workdir}",
            f"--coordinator=localhost:{port}",
            f"--processes={processes}",
            f"--process={process}",
            *(f"--config.{name}={value}" for name, value in fields.items()),
        ],
        # As on two machines, each has a cache of its own.
        env=os.environ
        | {"XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "1"}
        | {"JCM_CACHE": str(workdir.parent / f"cache{process}")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _lines(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_two_processes_make_the_run_of_one(student, tmp_path, monkeypatch):
    config, alone = student
    # One of them knows the real images already.
    monkeypatch.setenv("JCM_CACHE", str(tmp_path / "cache1"))
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.eval.scores = ("fd_efficientnet_lite0",)
    (score,) = scores.create(config, data.load(config.data))
    score.prepare()
    port = _free_port()
    pair = [_start(config, tmp_path / "run", port, process) for process in (0, 1)]
    outputs = [process.communicate(timeout=280)[0] for process in pair]
    for process, output in zip(pair, outputs, strict=True):
        assert process.returncode == 0, output
    # Eight devices of one process or one of each of two: the same numbers.
    ours, theirs = _lines(tmp_path / "run"), _lines(alone)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for name in ("loss", "grad_norm", "update_norm"):
        np.testing.assert_allclose(
            [line[name] for line in ours], [line[name] for line in theirs], rtol=1e-4
        )
    trained = (model.load(place).params for place in (tmp_path / "run", alone))
    for a, b in zip(*map(jax.tree.leaves, trained), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    # One writes logs and pictures; the other is heard of errors alone.
    assert "comparison.png" in outputs[0] and "comparison.png" not in outputs[1]
    for step in (4, 8):
        ours, theirs = (
            np.asarray(Image.open(place / "samples" / f"step_{step:08d}.png"), int)
            for place in (tmp_path / "run", alone)
        )
        # The weights differ by rounding, and so do the pixels.
        assert np.abs(ours - theirs).max() <= 2
        assert np.std(ours) > 20
    assert len(list((tmp_path / "cache0" / "reference").iterdir())) == 1
    by_two = json.loads((tmp_path / "run" / "scores.json").read_text())["rows"]
    shutil.rmtree(tmp_path / "run" / "evaluation")
    monkeypatch.setenv("JCM_CACHE", str(tmp_path / "cache2"))
    evaluate.evaluate(config, tmp_path / "run")
    by_one = json.loads((tmp_path / "run" / "scores.json").read_text())["rows"]
    for ours, theirs in zip(by_two, by_one, strict=True):
        assert ours["samples"] == theirs["samples"]
        assert ours["scores"]["fd_efficientnet_lite0"] == pytest.approx(
            theirs["scores"]["fd_efficientnet_lite0"], rel=1e-3
        )


@pytest.mark.parametrize("given", [["--process=0"], ["--processes=2", "--process=2"]])
def test_flags_that_do_not_fit_end_in_one_line(given, tmp_path):
    command = [sys.executable, "-m", "jcm.main", "--config=configs/digits_cd.py:smoke"]
    if len(given) > 1:
        given = [*given, f"--coordinator=localhost:{_free_port()}"]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path}", *given],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("jcm: ") and done.stderr.count("\n") == 1
