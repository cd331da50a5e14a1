"""Tests of SIGTERM and Ctrl-C: a run saves and ends, and the next start resumes it."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest

from jcm.commands import train as train_lib
from jcm.model.loading import load
from jcm.run.checkpoints import Checkpoints
from jcm.runtime import preemption
from jcm.runtime.errors import JcmError, Preempted
from jcm.training import prepare
from jcm.training.log import TrainLog
from jcm.training.profiling import Profile
from jcm.training.run import Run
from jcm.training.snapshots import Snapshots

_SIGNALS = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


def _weights(workdir):
    return jax.tree.leaves(load(workdir, ema="params").params)


def _losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {found["step"]: found["loss"] for found in map(json.loads, lines)}


@pytest.fixture
def program(monkeypatch):
    """Handles signals as a program does, and as before after the test."""
    # Ends the whole process.
    monkeypatch.setattr(preemption._Interrupts, "start_once", lambda: None)
    monkeypatch.setattr(preemption._Stopped, "resumes", True)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    preemption.exit_on_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_stopped_run_resumes_bit_for_bit(
    tiny, teacher, tmp_path, monkeypatch, program
):
    config = tiny("digits_edm")
    add, save = TrainLog.add, Checkpoints.save
    # Some launchers repeat SIGTERM, also while a step is saved.
    for number, stopped, times in ((signal.SIGINT, 3, 1), (signal.SIGTERM, 5, 3)):

        def signalled(self, step, *rest, number=number, stopped=stopped, times=times):
            if step == stopped:
                for _ in range(times):
                    os.kill(os.getpid(), number)
            return add(self, step, *rest)

        def saved(self, state, *rest, number=number, times=times):
            save(self, state, *rest)
            if state.step == 5 and times > 1:
                os.kill(os.getpid(), number)

        preemption.exit_on_signals()
        with monkeypatch.context() as patch:
            patch.setattr(TrainLog, "add", signalled)
            patch.setattr(Checkpoints, "save", saved)
            # The step that is in flight is the last one.
            message = f"stopped by {_SIGNALS[number]} after step {stopped}, which is sa"
            with pytest.raises(Preempted, match=message) as info:
                train_lib.train(config, tmp_path)
        os.kill(os.getpid(), number)  # It is ignored while the program ends.
        assert info.value.exit_code == 75
    steps = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert steps == ["4", "5"]
    config.profile.steps = (7, 8)
    train_lib.train(config, tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    for a, b in zip(_weights(tmp_path), _weights(teacher), strict=True):
        np.testing.assert_array_equal(a, b)
    # An entry covers the steps before a stop too.
    ours, theirs = _losses(tmp_path), _losses(teacher)
    assert ours == theirs and ours.keys() == {2, 4, 6, 8}


def test_a_run_is_stopped_before_its_first_step(tiny, tmp_path, monkeypatch):
    def stop(self):
        os.kill(os.getpid(), signal.SIGINT)
        return self

    monkeypatch.setattr(Snapshots, "__enter__", stop)
    with pytest.raises(Preempted, match="stopped by Ctrl-C before the first step: run"):
        train_lib.train(tiny("digits_edm"), tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())


def _interrupt(*_):
    os.kill(os.getpid(), signal.SIGINT)


def test_a_run_is_stopped_after_compilation(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_compile", _interrupt)
    monkeypatch.setattr(prepare, "_load_state", None)
    with pytest.raises(Preempted, match="stopped by Ctrl-C before the first step of t"):
        train_lib.train(tiny("digits_edm"), tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_processes_agree_at_once_only_while_steps_take_long(monkeypatch):
    """Otherwise the answer would have to wait for the step that is in flight."""
    asked = []

    def gather(array):
        asked.append(array)
        return np.array([True, False])

    log, watch = types.SimpleNamespace(), types.SimpleNamespace(received=False)
    run = types.SimpleNamespace(log=log, preemption=watch)
    monkeypatch.setattr("jcm.training.run.distributed.gather", gather)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for log.settles_first, log.stop, answer in [
        (True, False, True),
        (False, False, False),
        (False, True, True),
    ]:
        asked.clear()
        assert Run.stops(run) == answer
        assert len(asked) == log.settles_first


def test_the_signal_reaches_nested_runs(program):
    """There is a run inside of a run inside of a program."""
    # A signal to the outer run reaches the inner one, and the reverse.
    with pytest.raises(Preempted), preemption.Watch() as outer:
        os.kill(os.getpid(), signal.SIGTERM)
        with preemption.Watch() as inner:
            assert inner.received and outer.received
            assert inner.notice(slow=True).tolist() == [preemption.STOP] * 8
    preemption.exit_on_signals()
    with pytest.raises(Preempted), preemption.Watch() as outer:
        with preemption.Watch() as inner:
            assert not inner.received and inner.notice(slow=False).max() == 0
            os.kill(os.getpid(), signal.SIGINT)
        assert outer.received and outer.cause == "Ctrl-C"
    # Code that handles exceptions must not catch it.
    preemption.exit_on_signals()
    with pytest.raises(Preempted):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except Exception as error:
            raise AssertionError from error
    os.kill(os.getpid(), signal.SIGTERM)  # This must not raise again.


def test_outside_of_a_program_a_second_interrupt_is_not_held_back(program):
    before = signal.default_int_handler
    signal.signal(signal.SIGINT, before)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with pytest.raises(KeyboardInterrupt), preemption.Watch() as watch:
        os.kill(os.getpid(), signal.SIGINT)
        assert watch.received
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before
    # After `train` returns, the handlers of the caller are restored.
    with pytest.raises(Preempted), preemption.Watch():
        raise Preempted("saved")
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize(
    ("resumes", "then"), [(True, "; the same command resumes from here"), (False, "")]
)
def test_only_a_program_that_resumes_says_so(program, resumes, then):
    preemption.exit_on_signals(resumes=resumes)
    with pytest.raises(Preempted, match=f"^stopped by Ctrl-C{then}$"):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)


@pytest.mark.parametrize("number", _SIGNALS)
def test_an_exception_that_python_ignores_is_raised_again(program, number):
    """Python ignores those of callbacks, such as JAX's for garbage collection."""

    def callback(phase, info):
        gc.callbacks.remove(callback)
        os.kill(os.getpid(), number)
        time.sleep(0.01)  # The signal is handled here.

    gc.callbacks.append(callback)
    with pytest.raises(Preempted, match=f"stopped by {_SIGNALS[number]}"):
        gc.collect()
        assert callback not in gc.callbacks
        time.sleep(10)


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
    with pytest.raises(Preempted, match="after step 5, which is saved"):
        train_lib.train(tiny("digits_edm", **{"train.num_steps": 12}), run)
    # The newest checkpoint, of step 8, was damaged: the run resumed from step 4.
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["4", "5"]
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


def test_a_signal_does_not_interrupt_how_a_program_leaves_the_others():
    program = """
import atexit, os, signal
from jcm.commands import cli
def leave():
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)
    print("left")
atexit.register(leave)
with cli.errors_in_one_line(), cli.on_devices():
    pass
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stdout) == (0, "left\n"), done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_interrupt_ends_the_program_wherever_it_is():
    program = """
import ctypes, os, signal, threading, time
from jcm.runtime import preemption
preemption.exit_on_signals()
with preemption.Watch():
    # Another thread gets the signals, so that they do not end `sleep`.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    for seconds in (0, 0.1, 0.7):
        threading.Timer(seconds, os.kill, [os.getpid(), signal.SIGINT]).start()
    ctypes.CDLL(None).sleep(40)  # Python handles no signal here.
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=35
    )
    assert done.returncode == 130
    assert done.stderr == (
        "jcm: Ctrl-C: stopping; press it again to stop at once\n"
        "jcm: stopped at once by a second Ctrl-C\n"
    )
