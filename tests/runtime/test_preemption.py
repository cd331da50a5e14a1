"""Tests of SIGTERM: the run saves and ends, and the next start resumes it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jcm.commands import train as train_lib
from jcm.model.loading import load
from jcm.run.checkpoints import Checkpoints
from jcm.runtime import preemption
from jcm.runtime.errors import JcmError, Preempted
from jcm.training.log import TrainLog
from jcm.training.profiling import Profile


def _weights(workdir):
    return jax.tree.leaves(load(workdir, ema="params").params)


def test_a_stopped_run_resumes_bit_for_bit(tiny, teacher, tmp_path, monkeypatch):
    config = tiny("digits_edm")
    add = TrainLog.add

    def signalled(self, step, *rest):
        if step == 4:
            # The signal may come several times, also while a checkpoint is written.
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
        return add(self, step, *rest)

    save = Checkpoints.save

    def saved(self, state):
        save(self, state)
        if state.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    preemption.exit_on_sigterm()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(TrainLog, "add", signalled)
            patch.setattr(Checkpoints, "save", saved)
            with pytest.raises(Preempted, match="after step 6, which is saved") as info:
                train_lib.train(config, tmp_path)
        # Signals are ignored while the program ends.
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert info.value.exit_code == 75
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4", "6"]
    config.profile.steps = (7, 8)
    train_lib.train(config, tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    for a, b in zip(_weights(tmp_path), _weights(teacher), strict=True):
        np.testing.assert_array_equal(a, b)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6, 8]


def test_the_signal_reaches_nested_runs():
    """There is a run inside of a run inside of a program."""
    before = signal.getsignal(signal.SIGTERM)
    preemption.exit_on_sigterm()
    try:
        # A signal to the outer run reaches the inner one, and the reverse.
        with pytest.raises(Preempted):
            with preemption.Watch() as outer:
                os.kill(os.getpid(), signal.SIGTERM)
                with preemption.Watch() as inner:
                    assert inner.flags().all() and outer.flags().all()
        preemption.exit_on_sigterm()
        with pytest.raises(Preempted), preemption.Watch() as outer:
            with preemption.Watch() as inner:
                assert not inner.flags().any()
                os.kill(os.getpid(), signal.SIGTERM)
            assert outer.flags().all()
        # Code that handles exceptions must not catch it.
        preemption.exit_on_sigterm()
        with pytest.raises(Preempted):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(10)
            except Exception as error:
                raise AssertionError from error
        os.kill(os.getpid(), signal.SIGTERM)  # This must not raise again.
        # After `train` returns, the handler of the caller is restored.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with pytest.raises(Preempted), preemption.Watch():
            raise Preempted("saved")
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_failed_save_is_not_reported_as_saved(tiny, tmp_path, monkeypatch):
    config = tiny("digits_edm")

    def told(self, step, *rest):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    def fails(self):
        raise JcmError("cannot finish saving: the disk is full")

    monkeypatch.setattr(TrainLog, "add", _then(told, TrainLog.add))
    monkeypatch.setattr(Checkpoints, "finish", fails)
    with pytest.raises(JcmError, match="cannot finish saving: the disk is full"):
        train_lib.train(config, tmp_path)


def test_sigterm_saves_a_step_earlier_than_a_damaged_checkpoint(
    tiny, teacher, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    shutil.copytree(teacher, run)
    for path in (run / "checkpoints" / "8").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])

    def signalled(self, step, *rest):
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(TrainLog, "add", _then(signalled, TrainLog.add))
    with pytest.raises(Preempted, match="after step 7, which is saved"):
        train_lib.train(tiny("digits_edm", **{"train.num_steps": 12}), run)
    # The newest checkpoint, of step 8, was damaged: the run resumed from step 4.
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["4", "7"]
    assert [p.name for p in (run / "damaged").iterdir() if p.is_dir()] == ["8"]


def _then(first, second):
    def both(*args):
        first(*args)
        return second(*args)

    return both


@pytest.mark.parametrize("steps", [(3,), (0, 2), (3, 2), (1, 2, 3)])
def test_a_profile_needs_a_first_and_a_last_step(steps, tmp_path):
    with pytest.raises(JcmError, match="config.profile.steps=.* must be .FIRST, LAST"):
        Profile(steps, tmp_path)


def test_a_program_that_does_not_train_ends_at_once():
    program = """
import os, signal, time
from jcm.commands import cli
with cli.errors_in_one_line(), cli.on_devices():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 75
    assert done.stderr == (
        "jcm: stopped by SIGTERM; the same command resumes from here\n"
    )
