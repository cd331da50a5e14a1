"""Tests of the training log: means, waits, and steps that are not finite."""

import itertools
import json
import math

import jax.numpy as jnp
import pytest

from jcm.run.progress import Progress
from jcm.run.writers import MetricWriter
from jcm.runtime import preemption
from jcm.runtime.errors import JcmError
from jcm.training import step as step_lib
from jcm.training.log import TrainLog, Window


class _Recorder(MetricWriter):
    def __init__(self):
        self.written = {}

    def write_scalars(self, step, scalars):
        self.written[step] = dict(scalars)


def _log(every=2, limit=0, saved=None):
    """Returns a log, and what it writes; `saved` is what a checkpoint holds."""
    recorder = _Recorder()
    progress = Progress(10, enabled=False)
    window = None if saved is None else Window.of(saved, "the checkpoint")
    return TrainLog(recorder, progress, every, limit, window), recorder


def _metrics(loss=1.0, grad_norm=1.0, param_norm=1.0, notice=0):
    values = {"loss": loss, "grad_norm": grad_norm, "param_norm": param_norm}
    values["learning_rate"] = 0.001
    metrics = {name: jnp.float32(value) for name, value in values.items()}
    return metrics | {"notice": jnp.int32(notice)}


def test_losses_and_waits_are_means_since_the_last_line():
    log, recorder = _log()
    for step, (loss, waited) in enumerate([(1.0, 0.1), (3.0, 0.3), (5.0, 0.0)], 1):
        log.add(step, _metrics(loss, grad_norm=float(step)), waited)
    assert recorder.written.keys() == {2}  # One step late.
    assert recorder.written[2]["loss"] == 2.0
    assert recorder.written[2]["data_wait_secs"] == pytest.approx(0.2)
    assert recorder.written[2]["grad_norm"] == 2.0
    assert "skipped" not in recorder.written[2]
    log.add(4, _metrics(7.0))
    log.settle()
    assert recorder.written[4]["loss"] == 6.0
    # A method cannot use the names that are added.
    assert recorder.written[4].keys() - _metrics().keys() <= set(step_lib._LOGGED)
    assert recorder.written[4]["data_wait_secs"] == 0.0


@pytest.mark.parametrize("name", ["loss", "grad_norm", "param_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_ends_the_run(name, value):
    log, _ = _log()
    log.add(7, _metrics(**{name: value}))
    with pytest.raises(JcmError, match=f"step 7: .*{name} {value}.*skip_nonfinite=10"):
        log.settle()


def test_single_steps_are_skipped_and_counted():
    log, recorder = _log(every=4, limit=2)
    for step, norm in enumerate([1.0, math.nan, math.inf, 1.0, math.nan], 1):
        log.add(step, _metrics(loss=step if norm == 1 else norm, grad_norm=norm))
    assert recorder.written[4]["loss"] == 2.5  # Of the two steps that count.
    assert recorder.written[4]["skipped"] == 2
    for step in (6, 7):
        log.add(step, _metrics(grad_norm=math.nan))
    with pytest.raises(JcmError, match="step 7: loss 1.0, grad_norm nan"):
        log.settle()  # The third in a row.


def test_parameters_that_are_not_finite_are_never_skipped():
    log, _ = _log(limit=5)
    log.add(1, _metrics(grad_norm=math.nan, param_norm=math.nan))
    with pytest.raises(JcmError, match="param_norm nan"):
        log.settle()


def test_the_loss_is_nan_if_no_step_counts():
    log, recorder = _log(every=1, limit=2)
    log.add(1, _metrics(grad_norm=math.nan))
    log.settle()
    assert math.isnan(recorder.written[1]["loss"])


def _runs(stops):
    """Returns the entries of a run of 8 steps that stops after some of them."""
    written, saved = {}, None
    for first, last in itertools.pairwise([0, *stops, 8]):
        log, recorder = _log(every=4, limit=3, saved=saved)
        for step in range(first + 1, last + 1):
            loss = math.nan if step in (2, 3, 6) else 0.1 * step
            found = _metrics(loss)
            found["logs"] = {"late": (jnp.float32(step), jnp.float32(step > 5))}
            log.add(step, found, waited=step / 7)
        log.settle()
        saved = json.loads(json.dumps(log.window))  # Through a checkpoint.
        written |= recorder.written
    times = ("steps_per_sec", "images_per_sec", "eta_secs")
    return {
        step: {name: value for name, value in numbers.items() if name not in times}
        for step, numbers in written.items()
    }


@pytest.mark.parametrize("stops", [(1,), (3,), (4,), (2, 5), (1, 2, 3, 4, 5, 6, 7)])
def test_a_run_that_is_resumed_writes_the_same_numbers(stops):
    expected = _runs(())
    assert expected[4]["skipped"] == 2 and expected[8]["skipped"] == 1
    assert _runs(stops) == expected


def test_the_steps_in_a_row_that_are_skipped_count_on_after_a_resume():
    log, _ = _log(every=2, limit=2)
    for step in (1, 2):
        log.add(step, _metrics(math.nan))
    log.settle()
    log, _ = _log(every=2, limit=2, saved=log.window)
    log.add(3, _metrics(math.nan))
    with pytest.raises(JcmError, match="step 3: loss nan"):
        log.settle()


@pytest.mark.parametrize(
    "saved", [None, [], {"totals": [1.0]}, {"skipped": -1}, {"totals": {"loss": [1.0]}}]
)
def test_a_checkpoint_without_sums_of_the_log_is_refused(saved):
    with pytest.raises(JcmError, match="^step 3 holds no sums of the log .*: move"):
        Window.of(saved, "step 3")


def test_a_signal_to_one_process_reaches_all_one_step_later():
    log, recorder = _log(every=1)
    log.add(1, _metrics(notice=preemption.STOP))
    assert not log.stop
    log.add(2, _metrics())
    assert log.stop
    log.settle()
    assert log.stop and "notice" not in recorder.written[2]


def test_steps_that_take_long_are_settled_before_the_next(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("jcm.training.log.time.monotonic", lambda: now[0])
    log, _ = _log()
    assert log.takes_long and log.settles_first
    # (seconds of a step, what the processes said in its batch)
    for step, (seconds, notice, takes_long) in enumerate(
        [(9, preemption.SLOW, True), (0.1, 0, False), (1.5, preemption.SLOW, True)], 1
    ):
        log.add(step, _metrics(notice=notice))
        now[0] += seconds
        log.settle()
        assert log.takes_long == takes_long
        # The processes agree by what all of them have said.
        assert log.settles_first == (notice == preemption.SLOW)
    assert not log.stop
