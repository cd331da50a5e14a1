"""What reading a file costs, and the limits that SECURITY.md states."""

import contextlib
import dataclasses
import pathlib
import re
import time
from collections.abc import Iterator

MIB = 2**20
# Of a file that is refused.
TIMES, MORE, SECONDS = 3, 300 * MIB, 10.0


@dataclasses.dataclass
class Cost:
    """What a block took.

    Attributes:
      memory: how far the memory of the process rose above that at the start, in bytes.
      seconds: of one core.
    """

    memory: int = 0
    seconds: float = 0.0


def size(path: pathlib.Path) -> int:
    """Returns the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(each.lstat().st_size for each in files if not each.is_dir())


def allowed(path: pathlib.Path) -> int:
    """Returns the bytes of memory that reading a file or folder may take."""
    return TIMES * size(path) + MORE


@contextlib.contextmanager
def measured() -> Iterator[Cost]:
    """Measures a block; the memory only on Linux."""
    cost = Cost()
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    before, started = _memory("VmRSS"), time.process_time()
    try:
        yield cost
    finally:
        cost.seconds = time.process_time() - started
        cost.memory = _memory("VmHWM") - before


@contextlib.contextmanager
def limited(path: pathlib.Path) -> Iterator[None]:
    """Fails if a block that reads a file or folder costs more than it may."""
    with measured() as cost:
        yield
    assert cost.memory <= allowed(path), f"{cost.memory / MIB:.0f} MiB"
    assert cost.seconds <= SECONDS, f"{cost.seconds:.1f} s"


def _memory(name: str) -> int:
    try:
        status = pathlib.Path("/proc/self/status").read_text()
    except OSError:
        return 0
    (found,) = re.findall(rf"^{name}:\s*(\d+) kB$", status, re.MULTILINE)
    return 1024 * int(found)
