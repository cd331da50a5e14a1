"""Locks of files and folders, which the system releases when their holder ends."""

import contextlib
import errno
import fcntl
import pathlib
from collections.abc import Iterator
from typing import IO, Any

from absl import logging

# What file systems without locks answer. NFS answers EBADF for a file that is not open
# for writing.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)


def lock(file: IO[Any] | int, *, wait: bool, shared: bool = False) -> bool:
    """Locks an open file or folder until it is closed or the process ends.

    The lock excludes the other processes of the machine. On most shared file systems
    the lock of a file also excludes those of other machines. That of a folder may not:
    on NFS the system takes it for this machine alone, and reports success. The package
    `filelock` makes the same system call, but leaves file systems without locks to the
    caller.

    Args:
      file: the open file, or the descriptor of a file or folder.
      wait: whether to wait until another holder releases it.
      shared: whether others may hold the lock that also share it.

    Returns:
      False if the file system does not support locks.

    Raises:
      BlockingIOError: if another process holds the lock and `wait` is False.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


@contextlib.contextmanager
def exclusive(folder: pathlib.Path) -> Iterator[bool]:
    """Creates a folder and excludes other processes from this block for it.

    Yields:
      Whether others are excluded; False on a file system without locks.

    Raises:
      OSError: if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            locked = lock(file, wait=False)
        except BlockingIOError:
            logging.info("waiting for another process that uses %s", folder)
            locked = lock(file, wait=True)
        yield locked
