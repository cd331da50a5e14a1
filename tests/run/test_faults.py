"""Tests a run that is killed while it saves; `campaigns/signals.py` kills many."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
from campaigns import comparing

from jcm.commands.train import train
from jcm.model.loading import load


def test_a_run_killed_while_it_saves_resumes_bit_for_bit(
    tiny, teacher, data_dir, tmp_path
):
    run = tmp_path / "run"
    killed = subprocess.Popen(
        [
            *(sys.executable, "-m", "jcm.main", f"--workdir={run}"),
            *("--config=configs/digits_edm.py:smoke", f"--config.data.dir={data_dir}"),
            *("--config.sample.steps=3", "--config.eval.scores=()"),
            "--config.model.ch_mult=(1,)",
        ],
        env=os.environ,  # As many devices as here.
        stderr=subprocess.DEVNULL,
    )
    folder = run / "checkpoints"
    while killed.poll() is None and not any(folder.glob("8*")):
        time.sleep(0.001)  # A busy loop would slow down the run.
    killed.kill()
    killed.wait()
    left = sorted(path.name for path in folder.iterdir())
    assert "4" in left and any(re.match("8", name) for name in left), left
    train(tiny("digits_edm"), run)
    for part in ("params", ""):
        for a, b in zip(
            *(jax.tree.leaves(load(w, ema=part).params) for w in (run, teacher)),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
    ours, theirs = (
        [json.loads(line)["loss"] for line in text.splitlines()]
        for text in (
            (run / "metrics.jsonl").read_text(),
            (teacher / "metrics.jsonl").read_text(),
        )
    )
    assert ours == theirs
    assert sorted(path.name for path in folder.iterdir()) == ["4", "8"]


def test_the_campaign_distinguishes_runs(teacher, student, tmp_path):
    places = []
    for number, run in enumerate((teacher, teacher, student[1])):
        places.append(tmp_path / str(number))
        shutil.copytree(run, places[-1] / "run")
    one, same, other = map(comparing.outcome, places)
    assert comparing.differences(one, same) == []
    found = comparing.differences(one, other)
    for name in ("run/metrics.jsonl", "run/run.json", "run/checkpoints/8/params"):
        assert any(text.startswith(name) for text in found), found
    assert one["run/checkpoints (newest)"] == [8]
    assert "conv_in/kernel" in one["run/checkpoints/8/params"]
    (places[0] / "tmp").mkdir()
    (places[0] / "tmp" / "left").touch()
    found = comparing.differences(comparing.outcome(places[0]), one)
    assert found == ["tmp/left is new"]
