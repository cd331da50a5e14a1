"""Files of others without a published hash: that of the first reading is kept.

Later readings are compared with it, which detects damage. The SHA-256 of a download
is beside it. That of another file is in `$JCM_CACHE/first_read`, with the identity of
the file. If the identity has changed, the file was replaced on purpose: what is there
now is taken, and logged. If only the content has changed, the file is damaged.
"""

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

import msgspec
from absl import logging

from jcm.runtime import cache, files, hashes, json_files
from jcm.runtime.errors import JcmError, one_line
from jcm.runtime.paths import resolved

_WHOLE = ""
"""The name of a whole file among its parts."""
# The parts of files that were compared in this process.
_compared: set[tuple[pathlib.Path, str, hashes.Identity]] = set()


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was read of a file: the SHA-256 of each part, by name."""

    path: str
    identity: hashes.Identity
    sha256: dict[str, str]


class Download(NamedTuple):
    """What is known of a file at the place of a download.

    Attributes:
      sha256: of the file, in hexadecimal digits.
      fetched: whether jcm downloaded it; otherwise somebody put it there.
    """

    sha256: str
    fetched: bool


@contextlib.contextmanager
def comparing(paths: Iterable[pathlib.Path]) -> Iterator[None]:
    """Compares files with their first reading, while the block reads them.

    Args:
      paths: of the files.

    Raises:
      JcmError: at the end of the block, if a file is damaged or cannot be read.
    """
    before = {}
    for path in paths:
        with contextlib.suppress(JcmError):  # the block explains it
            before[path] = hashes.identity(path)
    with hashes.computing(before) as result:
        yield
        found = result()
    for path, identity in before.items():
        _compare(path, identity, _WHOLE, found[path])


@contextlib.contextmanager
def comparing_blocks(
    path: pathlib.Path, names: Collection[str]
) -> Iterator[Callable[[bytes | memoryview], None]]:
    """Compares parts of a file with their first reading, while the block reads them.

    The same parts are compared once in a process, unless the file is replaced.

    Args:
      path: of the file.
      names: of the parts.

    Yields:
      A function that the block calls with all bytes that it reads, in order; they must
      not change before the block ends.

    Raises:
      JcmError: at the end of the block, if the file is damaged, or if it is missing.
    """
    identity, part = hashes.identity(path), " ".join(sorted(names))
    key = (path.absolute(), part, identity)
    if key in _compared:
        yield lambda block: None
        return
    blocks = hashes.Blocks()
    try:
        yield blocks.update
        found = blocks.finish()
    finally:
        blocks.cancel()
    _compare(path, identity, part, found)
    _compared.add(key)


def _place(path: pathlib.Path) -> pathlib.Path:
    """Returns the path of the record of a file in the cache."""
    name = hashlib.sha256(os.fsencode(resolved(path))).hexdigest()[:32]
    return cache.folder("first_read") / f"{name}.json"


def _record(path: pathlib.Path) -> _Record | None:
    """Returns what was read of a file; a missing or damaged record is None."""
    with contextlib.suppress(OSError, JcmError):
        return json_files.read(_place(path), _Record, "")
    return None


def _compare(
    path: pathlib.Path, identity: hashes.Identity, part: str, digest: str
) -> None:
    """Compares a part of a file with its record, and writes what is new."""
    place, old = _place(path), _record(path)
    known = old.sha256 if old else {}
    if old and old.identity == identity:
        if known.get(part) == digest:
            return
        if part in known:
            raise JcmError(
                f"{path} is damaged: its sha256 is {digest[:16]}, and was"
                f" {known[part][:16]} when it was first read, though the file was not"
                f" replaced since: copy it again, or delete {place}"
            )
    elif not old:
        logging.info("first reading of %s, with the SHA-256 %s", path, digest)
    elif known.get(part) != digest:
        logging.info(
            "%s was replaced since it was last read: its SHA-256 is %s", path, digest
        )
    kept = known if old and old.identity == identity else {}
    now = _Record(str(resolved(path)), identity, kept | {part: digest})
    try:
        files.write_json(place, msgspec.to_builtins(now))
    except JcmError as error:  # of a cache that cannot be written
        logging.warning("damage of files will not be noticed: %s", one_line(error))


@contextlib.contextmanager
def comparing_download(
    path: pathlib.Path, whole: bool = True
) -> Iterator[Callable[[], Download]]:
    """Compares a download that has no published hash, while the block reads it.

    A file that was put there by hand has no record beside it: it is compared with its
    first reading.

    Args:
      path: of the file, as `download.fetch` returns it.
      whole: whether all of the file is compared each time; if not, only when it is
        first read, since its reader compares the parts that it reads.

    Yields:
      A function that waits for the SHA-256 of the file and returns what is known of it.

    Raises:
      JcmError: at the end of the block, if the file has changed or cannot be read.
    """
    identity, old = hashes.identity(path), _record(path)
    record = hashes.beside(path)
    fetched = record.exists()
    known = ""
    if not whole and old and old.identity == identity:
        known = old.sha256.get(_WHOLE, "")
    with hashes.computing([] if known else [path]) as result:

        def download() -> Download:
            return Download(known or result()[path], fetched)

        yield download
        digest = download().sha256
    if not fetched:
        logging.info(
            "%s was not downloaded by jcm, and no hash was published to compare it"
            " with; its SHA-256, %s, is compared from now on",
            *(path, digest),
        )
    else:
        remedy = (
            f"delete {path} to download it again, or delete {record} if the file was"
            " replaced on purpose"
        )
        if hashes.read(record, remedy).get(path.name) != digest:
            raise JcmError(
                f"{path} has changed since it was downloaded (sha256 {digest[:16]}...):"
                f" {remedy}"
            )
    if not (fetched and whole):
        _compare(path, identity, _WHOLE, digest)
