"""SIGTERM saves and leaves; the next start goes on as if nothing had been."""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from jcm import model
from jcm import train as train_lib
from jcm.errors import JcmError, Preempted
from jcm.profiling import Profile


def _weights(workdir):
    return jax.tree.leaves(model.load(workdir, ema="params").params)


def test_a_run_that_is_sent_away_goes_on_bit_for_bit(
    tiny, teacher, tmp_path, monkeypatch
):
    config = tiny("digits_edm")
    add = train_lib.TrainLog.add

    def signalled(self, step, *rest):
        if step == 4:
            # However often it comes, also while the checkpoint is written.
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
        return add(self, step, *rest)

    save = train_lib.Checkpoints.save

    def saved(self, state):
        save(self, state)
        if state.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(train_lib.TrainLog, "add", signalled)
        patch.setattr(train_lib.Checkpoints, "save", saved)
        with pytest.raises(Preempted, match="after step 6, which is saved") as info:
            train_lib.train(config, tmp_path)
    assert info.value.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) is before
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4", "6"]
    config.profile.steps = (7, 8)
    train_lib.train(config, tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    for a, b in zip(_weights(tmp_path), _weights(teacher), strict=True):
        np.testing.assert_array_equal(a, b)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6, 8]


@pytest.mark.parametrize("steps", [(3,), (0, 2), (3, 2), (1, 2, 3)])
def test_a_window_of_a_profile_has_two_ends(steps, tmp_path):
    with pytest.raises(JcmError, match="config.profile.steps=.* must be .FIRST, LAST"):
        Profile(steps, tmp_path)


def test_where_nothing_is_trained_the_program_leaves_at_once():
    program = """
import os, signal, time
from jcm import cli
def main(argv):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
cli.run(main)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 75
    assert done.stderr == (
        "jcm: stopped by SIGTERM; the same command goes on from here\n"
    )
