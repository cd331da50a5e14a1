"""Runs the programs that are compared: jcm and PyTorch, each in its own process."""

import dataclasses
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

FOLDER = pathlib.Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
# The largest difference of outputs and losses that rounding explains.
_TOLERANCE = 1e-4


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

    def required(self) -> dict[str, Any]:
        """Returns the numbers, or ends this program with the error."""
        if self.error:
            sys.exit(self.error)
        return self.numbers


@dataclasses.dataclass(frozen=True)
class Case:
    """A config that jcm and PyTorch are measured on.

    Attributes:
      config: its path in the repository.
      settings: fields that differ, with their values.
      folder: for files.
    """

    config: str
    settings: Mapping[str, Any]
    folder: pathlib.Path

    def jcm(self, flags: Mapping[str, Any]) -> list[str]:
        """Returns the command that measures jcm; see `jcm benchmark speed --help`."""
        fields = {
            f"config.{name}": tuple(value) if isinstance(value, list) else value
            for name, value in self.settings.items()
        }
        return [
            *(sys.executable, str(FOLDER / "jcm_speed.py")),
            f"--config={ROOT / self.config}",
            *(f"--{name}={value}" for name, value in {**fields, **flags}.items()),
        ]

    def torch(self, python: str, flags: Mapping[str, Any]) -> list[str]:
        """Returns the command that measures PyTorch.

        Args:
          python: an interpreter that has PyTorch and NumPy.
          flags: see `torch_speed.py`.
        """
        return [
            *(python, str(FOLDER / "torch_speed.py"), str(self.described)),
            *(f"--{name}={value}" for name, value in flags.items()),
        ]

    @functools.cached_property
    def described(self) -> pathlib.Path:
        """The file that describes the case for PyTorch."""
        file = self._file(".json")
        self._prepare("describe", file)
        return file

    def check(self, python: str) -> None:
        """Compares PyTorch's numbers with those of jcm; exits if they differ."""
        outputs = self._file(".npz")
        expected = self._prepare("outputs", outputs)
        found = run(self.torch(python, {"check": outputs})).required()
        print(self.config, json.dumps({"PyTorch": found, "jcm": expected}, indent=2))
        scale = max(found["largest_value"], 1.0)
        # The two differ in how they count the gradient of a convolution with stride 2.
        same = (
            found["largest_difference"] <= _TOLERANCE * scale
            and abs(found["loss"] / expected["loss"] - 1) <= _TOLERANCE
            and found["parameters"] == expected["parameters"]
            and abs(found["train_flops"] / expected["train_flops"] - 1) <= 1e-3
        )
        if not same:
            sys.exit(f"{self.config}: the numbers of PyTorch and jcm differ")

    def _file(self, suffix: str) -> pathlib.Path:
        return self.folder / (pathlib.Path(self.config).stem + suffix)

    def _prepare(self, what: str, file: pathlib.Path) -> dict[str, Any]:
        """Runs `cases.py`: a program that measures must not start JAX itself."""
        settings = json.dumps(dict(self.settings))
        script = str(FOLDER / "cases.py")
        command = [sys.executable, script, what, self.config, str(file), settings]
        return run(command, environment={"JAX_PLATFORMS": "cpu"}).required()


def run(
    command: Sequence[str],
    limit: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> Found:
    """Runs a program that prints JSON at its end; its failure is no error here.

    Args:
      command: the program with its arguments.
      limit: seconds after which it is stopped; None for no limit.
      environment: variables that are set for it.
    """
    started = time.monotonic()
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    try:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path} | dict(environment or {}),
            start_new_session=True,
        )
    except OSError as error:
        return Found({}, 0.0, f"{command[0]} does not start: {error}")
    try:
        out, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
        process.communicate()
        return Found({}, time.monotonic() - started, f"stopped after {limit:.0f} s")
    seconds = time.monotonic() - started
    # The JSON begins with the last line that is indented by nothing and opens a brace.
    start = max(out.rfind("\n{") + 1, 0)
    try:
        numbers = json.loads(out[start:])
    except ValueError:
        numbers = None
    if process.returncode or not isinstance(numbers, dict):
        return Found({}, seconds, errors.strip()[-2000:] or "it printed no numbers")
    return Found(numbers, seconds)


def append(file: str, record: Mapping[str, Any]) -> None:
    """Appends a line of JSON to a file."""
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(dict(record)) + "\n")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    return "\n".join(map(row, [header, ["---"] * len(header), *rows]))


def row(cells: Sequence[str]) -> str:
    """Returns a row of a table in Markdown."""
    return "| " + " | ".join(cells) + " |"
