"""Temporary files, and the removal of those that a kill has left.

A program locks the folder in which it writes temporary files while it does so. The
system releases the lock when the program ends, also by a kill. What is there while no
program holds the lock is left over.
"""

import contextlib
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator

from jcm.runtime import locks

# On file systems without locks, a file that has not changed for this long is left over.
_OLD_SECONDS = 24 * 3600
_PREFIX = "jcm_"


@contextlib.contextmanager
def protected(folder: str | os.PathLike) -> Iterator[None]:
    """Protects the temporary files in a folder from `remove` in this block."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        locks.lock(descriptor, wait=True, shared=True)
        yield
    finally:
        os.close(descriptor)


def remove(folder: str | os.PathLike, *patterns: str) -> None:
    """Removes the temporary files in a folder, unless a program is writing there now.

    Files that cannot be removed stay, as those on a read-only file system.

    Args:
      folder: where to look; it may be missing.
      patterns: of the names of temporary files and folders, such as ".*.tmp".
    """
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        descriptor = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        locked = locks.lock(descriptor, wait=False)
        for pattern in patterns:
            for path in pathlib.Path(folder).glob(pattern):
                if locked or time.time() - path.lstat().st_mtime > _OLD_SECONDS:
                    _delete(path)


@contextlib.contextmanager
def temporary_folder(kind: str) -> Iterator[pathlib.Path]:
    """Yields a new folder in the system's folder for temporary files, and deletes it.

    Those of the same kind that killed programs have left are deleted, too.

    Args:
      kind: a part of its name.
    """
    for path in pathlib.Path(tempfile.gettempdir()).glob(f"{_PREFIX}{kind}_*"):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            stack.callback(os.close, descriptor)
            mine = os.fstat(descriptor).st_uid == os.getuid()
            if mine and locks.lock(descriptor, wait=False):
                _delete(path)
    with contextlib.ExitStack() as stack:
        while True:
            path = pathlib.Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{kind}_"))
            stack.callback(shutil.rmtree, path, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):
                stack.enter_context(protected(path))
            if path.exists():  # otherwise it was deleted before it was protected
                break
        yield path


def _delete(path: pathlib.Path) -> None:
    """Deletes a file or a folder, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
