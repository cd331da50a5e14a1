"""Programs in the background, each in a place of its own that can be looked through."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

ROOT = pathlib.Path(__file__).parents[2]
_TICK = 0.02
_LONGEST = 600  # seconds that a program may take


class Place:
    """A folder with a workdir, a home, a cache and a folder for temporary files."""

    def __init__(self, folder: pathlib.Path, compiled: pathlib.Path):
        """Creates the folder.

        Args:
          folder: everything that the programs write is in it.
          compiled: the cache of compiled programs, which several places share.
        """
        self.folder, self._compiled = folder, compiled
        self.workdir, self.temporary = folder / "run", folder / "tmp"
        # Outside of the folder that is watched and compared.
        self.log = folder.with_name(f"{folder.name}.log")
        for name in ("tmp", "home", "cache"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def environment(self) -> dict[str, str]:
        """Returns the environment of the programs."""
        return os.environ | {
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.temporary),
            "HOME": str(self.folder / "home"),
            "JCM_CACHE": str(self.folder / "cache"),
            "JAX_PLATFORMS": "cpu",
            # Small programs are compiled faster and run as fast without.
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(self._compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }


class Program:
    """One or several processes of the same command."""

    def __init__(
        self,
        place: Place,
        arguments: Sequence[str],
        *,
        processes: int = 1,
        environment: Mapping[str, str] | None = None,
    ):
        """Starts the processes in a session of their own.

        Args:
          place: where they write.
          arguments: of `jcm`.
          processes: their number.
          environment: variables to add.
        """
        self._log = place.log.open("a+b")
        self._path, self._begins = place.log, self._log.seek(0, os.SEEK_END)
        several: list[list[str]] = [[]]
        if processes > 1:
            port = _free_port()
            several = [
                [
                    f"--coordinator=localhost:{port}",
                    f"--processes={processes}",
                    f"--process={i}",
                    "--heartbeat_timeout=10",
                ]
                for i in range(processes)
            ]
        self.started = time.monotonic()
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "jcm.main", *arguments, *flags],
                cwd=ROOT,
                env=place.environment() | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            for flags in several
        ]

    @property
    def said(self) -> str:
        """What the processes have printed."""
        return self._path.read_bytes()[self._begins :].decode(errors="replace")

    @property
    def codes(self) -> list[int | None]:
        """The exit code of each process; None of one that runs."""
        return [process.poll() for process in self.processes]

    @property
    def runs(self) -> bool:
        """Whether any process runs."""
        return None in self.codes

    def until(self, condition: Callable[[], bool]) -> None:
        """Waits for a condition or for the end of all processes.

        Raises:
          TimeoutError: after ten minutes.
        """
        deadline = time.monotonic() + _LONGEST
        while self.runs and not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"still runs: {self.said[-2000:]}")
            time.sleep(_TICK)

    def finish(self) -> list[int]:
        """Waits for the end and returns the exit codes."""
        try:
            self.until(lambda: False)
        finally:
            self.kill()
            self._log.close()
        return [process.wait() for process in self.processes]

    def kill(self) -> None:
        """Kills all processes that run."""
        for process in self.processes:
            send(process, signal.SIGKILL)

    def left(self) -> list[str]:
        """Returns the processes of this program that still run after its end."""
        deadline = time.monotonic() + 5
        while found := _of_sessions({process.pid for process in self.processes}):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        return found


def handles(process: subprocess.Popen, number: int) -> bool:
    """Returns whether a process has its own handler of a signal now."""
    try:
        text = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return False
    (line,) = (line for line in text.splitlines() if line.startswith("SigCgt:"))
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def send(process: subprocess.Popen, number: int) -> bool:
    """Sends a signal; returns False if the process has ended."""
    if process.poll() is not None:
        return False
    process.send_signal(signal.Signals(number))
    return True


def _of_sessions(sessions: set[int]) -> list[str]:
    found = []
    for path in pathlib.Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            after_name = (path / "stat").read_text().rpartition(")")[2].split()
            state, session = after_name[0], int(after_name[3])
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, UnicodeDecodeError):
            continue
        if session in sessions and state != "Z":
            found.append(f"{path.name} {command[:100]}")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
