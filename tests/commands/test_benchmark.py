"""The benchmarks: what is measured of the machine, and the tables that compare."""

import dataclasses
import json
import logging
import time

import cpu_table
import gpu_table
import growth
import jax
import numpy as np
import pytest
import running

from jcm.commands.benchmark import machine
from jcm.commands.benchmark.measuring import Timing, measured

_STEADY = Timing((1.0, 1.05, 1.0), (1.5, 1.5, 1.5), (0.1, 0.1, 0.1), 2, 0.01)


def test_numbers_of_steady_calls():
    found = _STEADY.numbers()
    assert found["seconds"] == 1.0
    assert found["spread"] == pytest.approx(0.05)
    assert found["cores_in_use"] == pytest.approx(4.8 / 3.05)
    assert found["threads_in_use"] == 2 and found["scattered"] == ""


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"seconds": (1.0, 1.2, 1.0)}, "the slowest call took 20% longer"),
        ({"others": 0.5}, "other processes used 50% of the cores"),
        ({"others": None}, ""),
    ],
)
def test_why_times_scatter(changes, reason):
    assert dataclasses.replace(_STEADY, **changes).scattered() == reason


def test_scattered_times_are_reported(caplog):
    pauses = iter((*[0.0] * 6, 0.05))
    with caplog.at_level(logging.WARNING):
        found = measured("a pause", lambda: time.sleep(next(pauses)), repeats=2)
    assert len(found.seconds) == 2 and found.spread > 1
    assert "the figures of a pause scatter: the slowest call took" in caplog.text


def _use(at, own, busy, threads):
    return machine.Use(at=at, own=own, threads=threads, busy=busy, cores=2)


def test_threads_and_others_are_counted():
    before = _use(0.0, 5.0, 100.0, {1: 5.0, 2: 0.0})
    after = _use(10.0, 15.0, 114.0, {1: 9.0, 2: 0.1, 3: 5.9})
    assert after.threads_since(before) == 2
    assert after.others_since(before) == pytest.approx(4 / 20)


def test_where_the_system_tells_nothing():
    before, after = _use(0.0, 5.0, None, {}), _use(10.0, 15.0, None, {})
    assert after.threads_since(before) is None
    assert after.others_since(before) is None


def test_the_counters_of_this_process():
    before, until = machine.Use.now(), time.process_time() + 0.1
    while time.process_time() < until:
        pass
    after = machine.Use.now()
    assert 0.02 < after.own - before.own < 10
    assert after.threads_since(before) in (None, 1, 2, 3)
    before = dataclasses.replace(before, at=after.at - 0.1)
    assert after.others_since(before) is None  # too short


def test_the_speed_of_convolutions_is_measured(monkeypatch):
    monkeypatch.setattr(machine, "_CHAIN", 1)
    monkeypatch.setattr(machine, "_CALLS", 1)
    devices = jax.devices()[:2]
    assert machine.convolution_flops_per_second(devices, "float32") > 0


def _numbers(seconds, samples):
    step = {
        "seconds": seconds,
        "seconds_each": [seconds, 1.1 * seconds],
        "spread": 0.1,
        "user_cpu_seconds": 2 * seconds,
        "system_cpu_seconds": 0.1,
    }
    return {
        "train_step": step,
        "train_images_per_second": 16 / seconds,
        "compile_seconds": 20.0,
        "train_peak_memory_gib": 1.0,
        "share_of_bf16_peak": 0.5,
        "peak_memory_gib": 1.5,
        "sampling": {"1 step": {"images_per_second": samples}},
    }


def test_a_table_of_medians():
    records = [
        (method, program, _numbers(seconds, 80.0))
        for method in ("cd", "ct")
        for program, times in (("jcm", (1.0, 3.0, 1.1)), ("eager", (1.2, 1.2, 1.2)))
        for seconds in times
    ]
    lines = cpu_table.table(records).splitlines()
    assert lines[0] == "|  | jcm | PyTorch, eager |"
    assert "| CD step, s | 1.100 | 1.200 |" in lines
    assert "| one-step samples/s | 80.0 | 80.0 |" in lines


def test_a_row_of_the_history(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("| commit | a |\n|---|---|\n| x | 1 |\n\nText.\n")
    cpu_table.append_row(str(page), ["y", "2"])
    assert page.read_text().splitlines()[2:4] == ["| x | 1 |", "| y | 2 |"]


def test_a_part_that_failed_is_in_the_table():
    results = {
        ("cifar10_cd", "jcm"): _numbers(0.4, 100.0),
        ("cifar10_cd", "compiled"): _numbers(0.5, 90.0),
        ("imagenet64_cd", "jcm"): {"error": "a trace\nstopped after 5 s"},
    }
    lines = gpu_table.table(results).splitlines()[2:]
    assert "| 400 ms | 40 | 50% |" in lines[0] and "| 500 ms | 32 | 40% |" in lines[1]
    assert lines[2].startswith("| `imagenet64_cd`, jcm | stopped after 5 s |")


def test_a_program_that_fails_or_hangs():
    assert "no such" in running.run(["bash", "-c", "echo no such >&2; exit 3"]).error
    found = running.run(["sleep", "9"], limit=0.1)
    assert found.error.startswith("stopped after") and not found.numbers
    assert running.run(["echo", 'a {log}\n{"a": 1}']).required() == {"a": 1}
    assert running.run(["echo", "no number"]).error == "it printed no numbers"
    assert "does not start" in running.run(["/no/such/program"]).error


def test_a_case_is_described_and_its_outputs_are_those_of_jcm(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    case = running.Case("configs/cifar10_ct.py", cpu_table._TINY, tmp_path)
    described = json.loads(case.described.read_text())
    assert described["batch_size"] == 4
    expected = case._prepare("outputs", tmp_path / "outputs.npz")
    assert expected["loss"] > 0 and expected["train_flops"] > 0
    with np.load(tmp_path / "outputs.npz") as arrays:
        assert arrays["out"].shape == arrays["x"].shape == (4, 16, 16, 3)
        sizes = [arrays[name].size for name in arrays if name.startswith("params/")]
    assert sum(sizes) == expected["parameters"]


def test_the_plot_of_growth(tmp_path):
    points = [{"x": x, "seconds": 2.0 * x, "memory_mib": 3.0 * x} for x in (1, 2, 4)]
    rows = dict.fromkeys(growth._GROWING, points)
    growth.draw(rows, str(tmp_path / "plot.png"))
    assert (tmp_path / "plot.png").stat().st_size > 1000
