"""SHA-256 of files: recorded when they are written, compared when they are read.

A record is a text file in the format of the program `sha256sum`, one line a file. It
lies beside the files that it lists, so that `sha256sum -c RECORD` checks them too.
"""

import contextlib
import hashlib
import pathlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures

import msgspec

from jcm.runtime import budget, files
from jcm.runtime.errors import JcmError, one_line

NAME = "SHA256SUMS"
"""The name of the record of a whole folder."""
_BLOCK = 2**18
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def beside(path: pathlib.Path) -> pathlib.Path:
    """Returns the path of the record of a single file."""
    return path.with_name(f"{path.name}.sha256")


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What changes when a file is replaced or written, but not when a disk fails.

    Copies can keep the size and the time of the content (`cp -p`, archives), but the
    inode and its own time (`ctime`) cannot both be kept.

    Attributes:
      inode: the number of the file in its file system.
      size: in bytes.
      modified: the time of its content, in nanoseconds.
      changed: the time of its inode, in nanoseconds.
    """

    inode: int
    size: int
    modified: int
    changed: int


def identity(path: pathlib.Path) -> Identity:
    """Returns the identity of a file.

    Raises:
      JcmError: if it cannot be read.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return Identity(stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def sha256(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file; see `digest_of`."""
    return digest_of(path, "sha256")


# The digest of files, by path, algorithm and identity.
_known: dict[tuple[pathlib.Path, str, Identity], str] = {}
_MOST_KNOWN = 1000


def known(
    path: pathlib.Path, algorithm: str = "sha256", stop: threading.Event | None = None
) -> str:
    """Returns the digest of a file, computed once in a process unless it changes.

    A change is detected by the `Identity` of the file. Arguments and errors are those
    of `digest_of`.
    """
    key = (path.absolute(), algorithm, identity(path))
    found = _known.get(key)
    if found is None:
        found = digest_of(path, algorithm, stop)
        if not (stop and stop.is_set()):
            if len(_known) >= _MOST_KNOWN:
                _known.clear()
            _known[key] = found
    return found


def digest_of(
    path: pathlib.Path, algorithm: str, stop: threading.Event | None = None
) -> str:
    """Returns the digest of a file in hexadecimal digits.

    Args:
      path: of the file.
      algorithm: as `hashlib` names it.
      stop: ends the work early when it is set; the result is then meaningless.

    Raises:
      JcmError: if it is not a regular file, or cannot be read.
    """
    digest = hashlib.new(algorithm, usedforsecurity=False)
    buffer = memoryview(bytearray(_BLOCK))
    try:
        with budget.regular_file(path).open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                if stop and stop.is_set():
                    break
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.hexdigest()


def _unreadable(path: pathlib.Path, error: OSError) -> JcmError:
    return JcmError(
        f"cannot read {path} ({error.strerror or one_line(error)}): check its folder"
        " and its disk, or copy it again"
    )


class Blocks:
    """The SHA-256 of blocks of bytes, computed in a thread that releases the GIL.

    A reader that skips most of a file passes what it reads, so that nothing is read
    for the hash alone.
    """

    def __init__(self) -> None:
        """Begins without a block."""
        self._digest = hashlib.sha256()
        self._small = bytearray()
        self._pool = futures.ThreadPoolExecutor(1)

    def update(self, block: bytes | memoryview) -> None:
        """Adds a block, which must not change before `finish`."""
        if len(block) < _BLOCK:
            self._small += block
            if len(self._small) < _BLOCK:
                return
            block = b""
        self._pool.submit(self._digest.update, bytes(self._small))
        self._small.clear()
        self._pool.submit(self._digest.update, block)

    def finish(self) -> str:
        """Waits for the thread and returns the SHA-256 in hexadecimal digits."""
        self._pool.shutdown()
        self._digest.update(self._small)
        self._small.clear()
        return self._digest.hexdigest()

    def cancel(self) -> None:
        """Ends the thread early."""
        self._pool.shutdown(cancel_futures=True)


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
    the block raises. What is known of a file in this process is not computed again.

    Args:
      paths: of the files.

    Yields:
      A function that waits for the thread and returns the SHA-256 of each file, or
      raises JcmError if one cannot be read.
    """
    paths = list(paths)
    stop = threading.Event()

    def work() -> dict[pathlib.Path, str]:
        return {path: known(path, "sha256", stop) for path in paths}

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
