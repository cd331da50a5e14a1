"""Tests of what a program does with the cores of a machine."""

import json
import os
import platform
import subprocess
import sys

import pytest

from jcm.runtime import cores

_USE = """
import json, os
from absl import logging
logging.set_verbosity("info")
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
from jcm.runtime import cores
cores.use_all(16)
print(json.dumps(cores.settings()))
"""
_RESTART = """
import os, sys
from jcm.runtime import large_pages
print("started", os.getpid(), flush=True)
large_pages.restart("jcm", "jcm.main")
print(os.environ["GLIBC_TUNABLES"], sys.argv[1:])
"""


def _run(*command, **settings):
    taken = ("NPROC", "XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "GLIBC_TUNABLES")
    environment = {k: v for k, v in os.environ.items() if k not in taken} | settings
    return subprocess.run(
        [sys.executable, *command],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.parametrize(
    ("count", "batch_size", "devices", "threads"),
    [
        (1, 16, 1, 2),
        (2, 16, 2, 4),
        (2, 15, 1, 2),
        (6, 16, 4, 8),
        (8, 4, 4, 8),
        (64, 512, 16, 64),
    ],
)
def test_devices_share_the_batch_and_have_threads(count, batch_size, devices, threads):
    assert cores.choose(count, batch_size) == (devices, threads)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has affinity")
def test_one_core_is_one_device_and_what_the_user_sets_wins():
    found = _run("-c", _USE)
    settings = json.loads(found.stdout)
    assert (settings["cores"], settings["devices"]) == (1, 1)
    assert settings["NPROC"] == "2"
    assert "taken from the environment" not in found.stderr
    flags = "--xla_force_host_platform_device_count=3"
    found = _run("-c", _USE, NPROC="7", XLA_FLAGS=flags)
    settings = json.loads(found.stdout)
    assert (settings["devices"], settings["NPROC"]) == (3, "7")
    assert f"taken from the environment: NPROC=7, XLA_FLAGS={flags}" in found.stderr
    # What another program of jcm has set is not the user's.
    for left in ({"NPROC": "7", "JCM_NPROC": "7"}, {"JCM_NPROC": "7"}):
        found = _run("-c", _USE, **left)
        assert json.loads(found.stdout)["NPROC"] == "2"
        assert "taken from the environment" not in found.stderr


def test_a_container_with_a_quota_has_fewer_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "usable", lambda: list(range(64)))
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")
    assert cores.count() == 64
    for text, expected in (("max 100000", 64), ("250000 100000", 2), ("5 100", 1)):
        (tmp_path / "cpu.max").write_text(text)
        assert cores.count() == expected


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has pages")
def test_only_the_program_restarts_and_once(tmp_path):
    script = tmp_path / "jcm"
    script.write_text(_RESTART)
    lines = _run(script, "--flag", "a b").stdout.splitlines()
    assert len(lines) == 3
    assert lines[0] == lines[1]  # the same process
    assert lines[2] == "glibc.malloc.hugetlb=1 ['--flag', 'a b']"
    own = "glibc.malloc.hugetlb=0"
    lines = _run(script, GLIBC_TUNABLES=own).stdout.splitlines()
    assert lines[1:] == [f"{own} []"]
    lines = _run("-c", _RESTART, GLIBC_TUNABLES="").stdout.splitlines()
    assert lines[1:] == [" []"]
