"""Tests that the campaigns see what happens; `run/test_faults.py` compares runs."""

import os
import signal
import subprocess
import sys

import programs
import pytest
import scenarios
import signals
import soak
import watching

from jcm import config as config_lib


def test_a_watch_sees_each_step_of_a_file(tmp_path):
    with watching.Watch(tmp_path) as watch:
        (tmp_path / "checkpoints").mkdir()
        found = watch.wait(1)
        temporary = tmp_path / "checkpoints" / ".a.json.jcm-0123456789abcdef.tmp"
        temporary.write_text("x")
        temporary.rename(tmp_path / "checkpoints" / "12")
        found += watch.wait(1)
    assert found == [
        "create checkpoints",
        "create checkpoints/.a.json.*.tmp",
        "modify checkpoints/.a.json.*.tmp",
        "close checkpoints/.a.json.*.tmp",
        "moved from checkpoints/.a.json.*.tmp",
        "moved to checkpoints/#",
    ]


def test_the_configs_of_all_scenarios_are_valid(tmp_path):
    for scenario in scenarios.SCENARIOS.values():
        if scenario.config:
            fields = config_lib.fields(
                config_lib.load(f"configs/{scenario.config}.py:smoke")
            )
            assert scenario.fields.keys() <= fields.keys()


@pytest.mark.parametrize(
    ("codes", "kind", "text", "processes", "is_right"),
    [
        ([75], "SIGTERM", "", 1, True),
        ([0], "SIGINT", "", 1, True),
        ([1], "SIGTERM", "", 1, False),
        ([-15], "SIGTERM", "", 1, False),
        ([-15], "SIGTERM", " (early)", 1, True),
        ([-9], "SIGKILL", "", 1, True),
        ([-9, -6], "SIGKILL", " to (0,)", 2, True),
        ([-9, 134], "SIGKILL", " to (0,)", 2, True),
        ([134], "SIGKILL", "", 1, False),
        ([134, 75], "SIGTERM", " to (1,)", 2, False),
        ([75, 1], "SIGTERM", " to (0,)", 2, False),
        ([75], "SIGSTOP SIGCONT", "", 1, False),
    ],
)
def test_exit_codes_are_judged(codes, kind, text, processes, is_right):
    found = signals.wrong_codes(codes, kind, text, processes)
    assert (found == []) == is_right


def test_a_handler_of_a_signal_is_seen():
    code = "import signal, sys\n"
    code += "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
    code += "print(flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=-1) as process:
        process.stdout.readline()
        assert programs.handles(process, signal.SIGTERM)
        assert not programs.handles(process, signal.SIGHUP)
        assert programs.send(process, signal.SIGTERM)
        assert process.wait(20) == 75
        assert not programs.send(process, signal.SIGTERM)


def test_a_long_training_is_judged(tmp_path):
    place = programs.Place(tmp_path / "now", tmp_path / "compiled")
    seen = soak.sample(place, os.getpid())
    assert seen["rss_mib"] > 50 and seen["descriptors"] > 2 and seen["threads"] > 0
    assert seen["temporary_files"] == 0
    rows = [seen | {"seconds": s, "rss_mib": 500.0} for s in range(0, 1800, 5)]
    assert all(flat for *_, flat in soak.judge(rows, 300).values())
    grown = [row | {"rss_mib": 400 + row["seconds"] / 20} for row in rows]
    first, last, flat = soak.judge(grown, 300)["rss_mib"]
    assert not flat and first == pytest.approx(416.5, abs=1)
    assert last == pytest.approx(488, abs=1)
    with pytest.raises(ValueError, match="ended before"):
        soak.judge(rows[:10], 300)
