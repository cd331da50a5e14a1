"""Files of others without a published hash: that of the first reading is kept.

Later readings are compared with it, which detects damage. The SHA-256 of a download
is beside it. That of another file is in `$JCM_CACHE/first_read`, with the size and time
of the file. If one of these has changed, the file was replaced on purpose: what is
there now is taken, and logged. If only the content has changed, the file is damaged.
"""

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator

import msgspec
from absl import logging

from jcm.runtime import cache, files, hashes, json_files
from jcm.runtime.errors import JcmError, one_line


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was read: a path, the size in bytes, the time in nanoseconds, the hash."""

    path: str
    size: int
    modified: int
    sha256: str


@contextlib.contextmanager
def comparing(paths: Iterable[pathlib.Path]) -> Iterator[None]:
    """Compares files with their first reading, while the block reads them.

    Args:
      paths: of the files.

    Raises:
      JcmError: at the end of the block, if a file is damaged.
    """
    before = {}
    for path in paths:
        with contextlib.suppress(OSError):  # the block explains it
            before[path] = path.stat()
    with hashes.computing(before) as result:
        yield
        found = result()
    for path, stat in before.items():
        _compare(path, stat, found[path])


def _compare(path: pathlib.Path, stat: os.stat_result, digest: str) -> None:
    """Compares a file with its record in the cache, and writes what is new."""
    full = str(path.resolve())
    name = hashlib.sha256(os.fsencode(full)).hexdigest()[:32]
    place = cache.folder("first_read") / f"{name}.json"
    now = _Record(full, stat.st_size, stat.st_mtime_ns, digest)
    old = None
    # A missing or damaged record is written again.
    with contextlib.suppress(OSError, JcmError):
        old = json_files.read(place, _Record, "")
    if now == old:
        return
    if old and (old.size, old.modified) == (now.size, now.modified):
        raise JcmError(
            f"{path} is damaged: its sha256 is {digest[:16]}, and was {old.sha256[:16]}"
            " when it was first read, with the same size and time:"
            f" copy it again, or run `touch {path}` if it was replaced on purpose"
        )
    if old is None:
        logging.info("first reading of %s, with the SHA-256 %s", path, digest)
    elif old.sha256 != digest:
        logging.info(
            "%s was replaced since it was last read: its SHA-256 was %s and is %s",
            *(path, old.sha256, digest),
        )
    _write(place, lambda: files.write_json(place, msgspec.to_builtins(now)))


@contextlib.contextmanager
def comparing_download(path: pathlib.Path) -> Iterator[Callable[[], str]]:
    """Compares a download that has no published hash, while the block reads it.

    Args:
      path: of the file, as `download.fetch` returns it. If it was put there by hand,
        the hash of this first reading is written beside it.

    Yields:
      A function that waits for the SHA-256 of the file and returns it.

    Raises:
      JcmError: at the end of the block, if the file has changed.
    """
    with hashes.computing([path]) as result:
        yield lambda: result()[path]
        digest = result()[path]
    record = hashes.beside(path)
    remedy = (
        f"delete {path} to download it again, or delete {record} if the file was"
        " replaced on purpose"
    )
    if not record.exists():
        logging.info(
            "%s was not downloaded by jcm, and no hash was published to compare it"
            " with; its SHA-256, %s, is compared from now on",
            *(path, digest),
        )
        _write(record, lambda: hashes.write(record, {path.name: digest}))
    elif hashes.read(record, remedy).get(path.name) != digest:
        raise JcmError(
            f"{path} has changed since it was first read (sha256 {digest[:16]}...):"
            f" {remedy}"
        )


def _write(place: pathlib.Path, write: Callable[[], object]) -> None:
    """Writes a record; a cache that cannot be written only loses the comparison."""
    try:
        write()
    except JcmError as error:
        logging.warning("damage of files will not be noticed: %s", one_line(error))
