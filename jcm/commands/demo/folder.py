"""The folder of a page: what users upload, and the results that they fetch."""

import os
import pathlib
import threading
import time

from jcm.runtime.errors import JcmError

# Files are deleted after this many seconds. If there are too many bytes, the oldest are
# deleted, but none that is younger than `_YOUNG` seconds: it may be in use.
_OLDEST, _YOUNG = 3600.0, 60.0
# Each file counts at least this many bytes, which bounds the number of files.
_LEAST = 2**16


class Folder:
    """A folder of bounded size, whose files are deleted when they are old.

    Attributes:
      path: of the folder, without links.
      most: the number of bytes that its files may have; a small one counts 64 KiB.
    """

    def __init__(self, path: str | os.PathLike, most: int = 2**30):
        """Takes a folder that exists, which nothing else writes to."""
        self.path = pathlib.Path(path).resolve()
        self.most = most
        self._lock = threading.Lock()

    def tidy(self) -> int:
        """Deletes old files, and returns how many bytes the others count."""
        with self._lock:
            found = sorted(self._files())
            total = sum(size for _, size, _ in found)
            now = time.time()
            for changed, size, path in found:
                age = now - changed
                if age > _OLDEST or (total > self.most and age > _YOUNG):
                    path.unlink(missing_ok=True)
                    total -= size
            for folder in self.path.iterdir():
                if folder.is_dir() and now - folder.stat().st_mtime > _OLDEST:
                    _remove_if_empty(folder)
        return total

    def check_room(self) -> None:
        """Raises JcmError if the folder is full of files that may be in use."""
        if self.tidy() > self.most:
            raise JcmError("the page has no room for uploads: try again in a minute")

    def file(self, path: str, name: str) -> pathlib.Path:
        """Returns the path of a file in the folder.

        Args:
          path: as a user names it.
          name: of the argument, for the error.

        Raises:
          JcmError: if it is not a file in this folder.
        """
        try:
            found = pathlib.Path(path).resolve(strict=True)
            if found.is_relative_to(self.path) and found.is_file():
                return found
        except (OSError, ValueError, RuntimeError):
            pass
        raise JcmError(f"{name}: there is no such upload: upload the picture again")

    def _files(self) -> list[tuple[float, int, pathlib.Path]]:
        """Returns when each file was changed, what it counts and its path."""
        found = []
        for place, _, names in os.walk(self.path):
            for name in names:
                path = pathlib.Path(place, name)
                try:
                    about = path.lstat()
                except FileNotFoundError:
                    continue
                found.append((about.st_mtime, max(about.st_size, _LEAST), path))
        return found


def _remove_if_empty(folder: pathlib.Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        pass
