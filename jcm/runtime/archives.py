"""Zip archives, opened within the limits of `budget`."""

import contextlib
import io
import os
import zipfile
from collections.abc import Iterator
from typing import IO

from jcm.runtime import budget
from jcm.runtime.errors import shown

ENCRYPTED = 0x1
"""A flag of a member of an archive."""


@contextlib.contextmanager
def opened(
    file: IO[bytes] | io.BufferedIOBase, most: int = budget.DIRECTORY_BYTES
) -> Iterator[zipfile.ZipFile]:
    """Opens an archive whose members have their places in the file.

    `zipfile` reads the whole directory of an archive, in which a member of 50 bytes
    takes a thousand bytes of memory, and believes the sizes that it states.

    Args:
      file: a file that is open for reading.
      most: the longest directory in bytes. Reading it takes 25 times this memory.

    Raises:
      budget.Refused: if the directory is too long, if the sizes of all members exceed
        that of the file, or if a member has no name.
      zipfile.BadZipFile: if it is damaged.
    """
    guarded = _Guarded(file, most)
    with zipfile.ZipFile(guarded) as archive:
        guarded.most = None
        total = sum(member.compress_size for member in archive.infolist())
        if total > os.fstat(file.fileno()).st_size:
            raise budget.Refused("its members share bytes")
        if not all(member.filename for member in archive.infolist()):
            raise budget.Refused("a member has no name")
        yield archive


def check_plain(archive: zipfile.ZipFile) -> None:
    """Checks that the members take no more memory than their places in the file.

    Raises:
      budget.Refused: if a member is compressed or encrypted.
    """
    for member in archive.infolist():
        name = shown(member.filename)
        if member.compress_type != zipfile.ZIP_STORED:
            raise budget.Refused(f"its member {name} is compressed")
        if member.flag_bits & ENCRYPTED:
            raise budget.Refused(f"its member {name} is encrypted")
        if member.file_size != member.compress_size:
            raise budget.Refused(f"its member {name} has two sizes")


class _Guarded(io.RawIOBase):
    """A file of which at most `most` bytes are read at once; None for no limit."""

    def __init__(self, file: IO[bytes] | io.BufferedIOBase, most: int):
        self._file = file
        self.most: int | None = most

    def read(self, size: int = -1) -> bytes:
        """Returns the next bytes."""
        if self.most is None:
            return self._file.read(size)
        longest = self.most + 1
        found = self._file.read(min(size, longest) if size >= 0 else longest)
        if len(found) == longest:
            raise budget.Refused(f"its directory has more than {self.most:,} bytes")
        return found

    def seek(self, offset: int, whence: int = 0) -> int:
        """Moves to a position."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Returns the position."""
        return self._file.tell()

    def seekable(self) -> bool:
        """Returns whether `seek` works."""
        return True
