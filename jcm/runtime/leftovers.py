"""Temporary files, and the removal of those that a kill has left.

A program locks the folder in which it writes temporary files while it does so. The
system releases the lock when the program ends, also by a kill. What a program of this
machine has made and no program holds is left over. The locks of folders do not reach
other machines, as on NFS, so each name says which machine has made the file.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator

from jcm.runtime import locks

# A file of another machine, or on a file system without locks, is left over if it has
# not changed for this long.
_OLD_SECONDS = 24 * 3600
_PREFIX = "jcm_"
# The names from `temporary_name`.
_NAME = re.compile(r"\..+\.jcm-([0-9a-f]{8})[0-9a-f]{8}\.tmp", re.DOTALL)


@functools.cache
def _machine() -> str:
    """Returns the mark of this machine in names: 8 digits of a hash of its name."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def new_token() -> int:
    """Returns 64 bits for a name: 32 that mark this machine, and 32 random ones."""
    return int(_machine() + secrets.token_hex(4), 16)


def temporary_name(name: str, token: int | None = None) -> str:
    """Returns a name for a temporary file, which `remove` recognizes.

    Args:
      name: of the file that it will be, or what it is for.
      token: from `new_token`; by default a new one.
    """
    return f".{name}.jcm-{new_token() if token is None else token:016x}.tmp"


@contextlib.contextmanager
def protected(folder: str | os.PathLike) -> Iterator[None]:
    """Protects the temporary files in a folder from `remove` in this block."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        locks.lock(descriptor, wait=True, shared=True)
        yield
    finally:
        os.close(descriptor)


def remove(folder: str | os.PathLike) -> None:
    """Removes the temporary files in a folder, unless a program is writing there now.

    Those of another machine are removed when they are a day old. Only regular files
    with a name from `temporary_name` are removed. Files that cannot be removed stay, as
    those on a read-only file system.

    Args:
      folder: where to look; it may be missing.
    """
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        descriptor = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        locked = locks.lock(descriptor, wait=False)
        for path in pathlib.Path(folder).iterdir():
            with contextlib.suppress(OSError):  # another program may be faster
                if not (found := _NAME.fullmatch(path.name)):
                    continue
                about = path.lstat()
                is_mine = locked and found[1] == _machine()
                is_old = time.time() - about.st_mtime > _OLD_SECONDS
                if stat.S_ISREG(about.st_mode) and (is_mine or is_old):
                    path.unlink()


@contextlib.contextmanager
def temporary_folder(kind: str) -> Iterator[pathlib.Path]:
    """Yields a new folder in the system's folder for temporary files, and deletes it.

    Those of the same kind that killed programs of this machine have left are deleted,
    too. Those of other machines stay, since the time of a folder does not show whether
    it is in use.

    Args:
      kind: a part of its name.
    """
    prefix = f"{_PREFIX}{kind}_{_machine()}_"
    for path in pathlib.Path(tempfile.gettempdir()).glob(f"{prefix}????????"):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY
            descriptor = os.open(path, flags)
            stack.callback(os.close, descriptor)
            mine = os.fstat(descriptor).st_uid == os.getuid()
            if mine and locks.lock(descriptor, wait=False):
                shutil.rmtree(path, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        while True:
            path = pathlib.Path(tempfile.mkdtemp(prefix=prefix))
            stack.callback(shutil.rmtree, path, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):
                stack.enter_context(protected(path))
            if path.exists():  # otherwise it was deleted before it was protected
                break
        yield path
