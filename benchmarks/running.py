"""Runs the programs that are compared: jcm and PyTorch, each in its own process."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

FOLDER = pathlib.Path(__file__).resolve().parent
ROOT = FOLDER.parent


@dataclasses.dataclass(frozen=True)
class Found:
    """What a program has measured.

    Attributes:
      numbers: the JSON that it has printed; empty if it failed.
      seconds: how long it ran.
      error: the end of what it has printed on stderr if it failed, else "".
    """

    numbers: dict[str, Any]
    seconds: float
    error: str = ""


def jcm(
    config: str, settings: Mapping[str, Any], flags: Mapping[str, Any]
) -> list[str]:
    """Returns the command that measures a config with `jcm benchmark speed`.

    Args:
      config: such as configs/cifar10_cd.py.
      settings: fields of the config with their values.
      flags: other flags.
    """
    return [
        *(sys.executable, "-m", "jcm.main", "benchmark", "speed"),
        f"--config={ROOT / config}",
        *(f"--config.{field}={value}" for field, value in settings.items()),
        *(f"--{name}={value}" for name, value in flags.items()),
    ]


def torch(python: str, case: pathlib.Path, flags: Mapping[str, Any]) -> list[str]:
    """Returns the command that measures a case with PyTorch.

    Args:
      python: an interpreter that has PyTorch and NumPy.
      case: what `cases.write` has written.
      flags: see `torch_speed.py`.
    """
    return [
        *(python, str(FOLDER / "torch_speed.py"), str(case)),
        *(f"--{name}={value}" for name, value in flags.items()),
    ]


def run(command: Sequence[str], limit: float | None = None) -> Found:
    """Runs a program that prints JSON at its end; it never raises.

    Args:
      command: the program with its arguments.
      limit: seconds after which it is stopped.
    """
    started = time.monotonic()
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=limit,
            env=os.environ | {"PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        return Found({}, time.monotonic() - started, f"stopped after {limit:.0f} s")
    seconds = time.monotonic() - started
    if done.returncode:
        return Found({}, seconds, done.stderr.strip()[-2000:] or "no message")
    start = done.stdout.find("{")
    return Found(json.loads(done.stdout[start:]), seconds)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
