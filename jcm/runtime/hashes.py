"""SHA-256 of files: recorded when they are written, compared when they are read.

A record is a text file in the format of the program `sha256sum`, one line a file. It
lies beside the files that it lists, so that `sha256sum -c RECORD` checks them too.
"""

import contextlib
import functools
import hashlib
import pathlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures

from jcm.runtime import budget, files
from jcm.runtime.errors import JcmError, one_line

NAME = "SHA256SUMS"
"""The name of the record of a whole folder."""
_BLOCK = 2**18
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def beside(path: pathlib.Path) -> pathlib.Path:
    """Returns the path of the record of a single file."""
    return path.with_name(f"{path.name}.sha256")


def sha256(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file; see `digest_of`."""
    return digest_of(path, "sha256")


def known(path: pathlib.Path, algorithm: str = "sha256") -> str:
    """Returns the digest of a file, computed once in a process unless it changes.

    A change is detected by the size and the time of the file; see `digest_of`.
    """
    stat = path.stat()
    return _known(path, algorithm, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1000)
def _known(path: pathlib.Path, algorithm: str, *_: int) -> str:
    return digest_of(path, algorithm)


def digest_of(
    path: pathlib.Path, algorithm: str, stop: threading.Event | None = None
) -> str:
    """Returns the digest of a file in hexadecimal digits.

    Args:
      path: of the file.
      algorithm: as `hashlib` names it.
      stop: ends the work early when it is set; the result is then meaningless.

    Raises:
      JcmError: if it is not a regular file.
      OSError: if it cannot be read.
    """
    digest = hashlib.new(algorithm, usedforsecurity=False)
    buffer = memoryview(bytearray(_BLOCK))
    with budget.regular_file(path).open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            if stop and stop.is_set():
                break
    return digest.hexdigest()


def write(record: pathlib.Path, known: Mapping[str, str]) -> None:
    """Writes a record.

    Args:
      record: its path.
      known: the SHA-256 of each file, by its path relative to the folder of the record,
        with forward slashes.

    Raises:
      JcmError: if it cannot be written.
    """
    lines = [f"{digest}  {name}\n" for name, digest in sorted(known.items())]
    files.write_text(record, "".join(lines))


def write_folder(folder: pathlib.Path) -> None:
    """Writes the record of all files in a folder and the folders below it.

    Raises:
      JcmError: if it cannot be written.
    """
    paths = [path for path in folder.rglob("*") if path.is_file()]
    known = {path.relative_to(folder).as_posix(): sha256(path) for path in paths}
    write(folder / NAME, known)


def read(record: pathlib.Path, remedy: str) -> dict[str, str]:
    """Returns what `write` was given.

    Args:
      record: its path.
      remedy: the end of the error message.

    Raises:
      JcmError: if it is missing or damaged.
    """
    try:
        text = budget.regular_file(record, budget.JSON_BYTES).read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise JcmError(f"cannot read {record} ({one_line(error)}): {remedy}") from error
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = _LINE.fullmatch(line)
        if not match:
            raise JcmError(f"{record}, line {number}, is damaged: {remedy}")
        found[match[2]] = match[1]
    return found


@contextlib.contextmanager
def computing(
    paths: Iterable[pathlib.Path],
) -> Iterator[Callable[[], dict[pathlib.Path, str]]]:
    """Computes the SHA-256 of files in a thread, while the block reads them.

    The thread releases the GIL, so that the block is hardly slower. It ends early if
    the block raises.

    Args:
      paths: of the files.

    Yields:
      A function that waits for the thread and returns the SHA-256 of each file.
    """
    stop = threading.Event()

    def work() -> dict[pathlib.Path, str]:
        return {path: digest_of(path, "sha256", stop) for path in paths}

    with futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        try:
            yield future.result
        except BaseException:
            stop.set()
            raise


@contextlib.contextmanager
def comparing(
    record: pathlib.Path, names: Iterable[str], remedy: str
) -> Iterator[None]:
    """Compares files with a record, while the block reads them.

    Args:
      record: the path of the record.
      names: the files that the block reads, as in the record.
      remedy: the end of the error message, such as "copy it again".

    Raises:
      JcmError: at the end of the block, if a file is not as recorded or not listed.
    """
    listed = read(record, remedy)
    paths = {record.parent / name: name for name in names}
    for path, name in paths.items():
        if name not in listed:
            raise JcmError(f"{record} does not list {path}: {remedy}")
    with computing(paths) as result:
        yield
        found = result()
    for path, name in paths.items():
        if found[path] != listed[name]:
            raise JcmError(
                f"{path} is damaged or was changed (sha256 {found[path][:16]}, not"
                f" {listed[name][:16]} as in {record.name}): {remedy}"
            )


def check(record: pathlib.Path, names: Iterable[str], remedy: str) -> None:
    """Compares files with a record; arguments and errors are those of `comparing`."""
    with comparing(record, names, remedy):
        pass
