"""Files that are written part by part, and resumed only where they are as written."""

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import Annotated, BinaryIO

import msgspec
from absl import logging

from jcm.runtime import disk, json_files
from jcm.runtime.errors import JcmError

_BLOCK = 2**20


class _Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many bytes were written, and their SHA-256."""

    size: Annotated[int, msgspec.Meta(ge=1)]
    sha256: str


class Growing:
    """An open file to which parts are added.

    Each part adds a line to a journal beside the file: the length of all that was
    written, and its hash. Several programs may write the same content at once.

    Attributes:
      file: the open file.
      size: the number of bytes from its beginning that are as they were written.
    """

    def __init__(
        self, path: pathlib.Path, file: BinaryIO, journal: BinaryIO, unit: int
    ):
        """Compares the content with the journal; see `opened`."""
        self.file, self.size, self._path = file, 0, path
        self._journal, self._digest = journal, hashlib.sha256()
        lines = [line for line in _read(journal) if not line.size % unit]
        journal.truncate(0)
        digest, position = hashlib.sha256(), file.seek(0)
        for line in sorted(lines, key=lambda line: line.size):
            while part := file.read(min(line.size - position, _BLOCK)):
                digest.update(part)
                position += len(part)
            if position < line.size or digest.hexdigest() != line.sha256:
                break
            self.size, self._digest = position, digest.copy()
            self._add_line()
        longest = max((line.size for line in lines), default=0)
        # The copy of an object store may be shorter than its journal.
        lost = min(longest, file.seek(0, os.SEEK_END)) - self.size
        if lost > 0:
            logging.warning("%s is damaged: %d bytes of it are made again", path, lost)

    def add(self, part: bytes) -> None:
        """Adds bytes, which a kill of the program does not lose after the return."""
        with disk.writing(self._path):
            self.file.seek(self.size)
            self.file.write(part)
            self.file.flush()
            self.size += len(part)
            self._digest.update(part)
            self._add_line()

    def _add_line(self) -> None:
        line = _Written(self.size, self._digest.hexdigest())
        self._journal.write(msgspec.json.encode(line) + b"\n")
        self._journal.flush()


@contextlib.contextmanager
def opened(path: pathlib.Path, unit: int) -> Iterator[Growing]:
    """Opens a file that grows, which is created if it is missing.

    Args:
      path: of the file.
      unit: parts have a multiple of this many bytes.
    """
    # Both are kept open, since another program that writes the same content may delete
    # them when it is complete.
    with contextlib.ExitStack() as stack:
        with disk.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            file = stack.enter_context(os.fdopen(descriptor, "r+b"))
            journal = stack.enter_context(journal_of(path).open("a+b"))
            written = Growing(path, file, journal, unit)
        yield written


def delete(path: pathlib.Path) -> None:
    """Deletes a file that grew, if it exists."""
    path.unlink(missing_ok=True)
    journal_of(path).unlink(missing_ok=True)


def journal_of(path: pathlib.Path) -> pathlib.Path:
    """Returns the path of the journal of a file that grows."""
    return path.with_name(f"{path.name}.jsonl")


def _read(journal: BinaryIO) -> Iterator[_Written]:
    """Yields the lines of a journal, except for damaged ones."""
    journal.seek(0)
    for line in journal:
        with contextlib.suppress(JcmError):
            yield json_files.decode(line, _Written, "", "")
