"""The lease of a workdir, which lets only one run at a time train in it."""

import contextlib
import errno
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import BinaryIO

import fsspec
import jax
from absl import logging
from etils import epath

from jcm.run import storage
from jcm.runtime import disk, distributed, locks
from jcm.runtime.errors import JcmError

# How often the holder of a lease on an object store renews it. A lease that was not
# renewed for three times as long has lost its holder.
_LEASE_SECONDS = 20
# What the system answers to a process that may only read a folder.
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def hold(workdir: str | os.PathLike) -> Iterator[None]:
    """Holds the lease of a workdir in a block; every process must enter it.

    Args:
      workdir: from `storage.local_folder`.

    Raises:
      JcmError: in every process, if another run holds the lease.
    """
    with contextlib.ExitStack() as stack:
        with distributed.fail_together():
            if jax.process_index() == 0:
                path = storage.shared_path(workdir) / ".lock"
                remote = "://" in os.fspath(path)
                stack.enter_context(
                    _hold_object(path) if remote else _hold_file(pathlib.Path(path))
                )
        yield


@contextlib.contextmanager
def _hold_file(path: pathlib.Path) -> Iterator[None]:
    """Holds a lease by a file lock, which also ends when the holder is killed.

    A folder that this process may only read needs no lease, but another process may
    hold it.
    """
    with contextlib.ExitStack() as stack:
        file = _open(path)
        if file is not None:
            _lock(stack.enter_context(file), path)
        yield


def _open(path: pathlib.Path) -> BinaryIO | None:
    """Opens the file of a lease, to write in it if that is possible.

    Returns:
      The file; None if it does not exist and cannot be created.

    Raises:
      JcmError: if there is no folder for it, or no space.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not buffered, so that closing it does not write.
        return path.open("a+b", buffering=0)
    except OSError as error:
        if error.errno not in _READ_ONLY or not path.parent.is_dir():
            raise disk.cannot_write(path, error) from error
    with contextlib.suppress(FileNotFoundError):
        return path.open("rb", buffering=0)
    return None


def _lock(file: BinaryIO, path: pathlib.Path) -> None:
    """Takes the lock of a lease, and writes who holds it.

    Raises:
      JcmError: if another run holds it.
    """
    try:
        locked = locks.lock(file, wait=False)
    except BlockingIOError as error:
        file.seek(0)
        raise _in_use(path, file.read().decode(errors="replace")) from error
    if not locked:
        logging.warning(
            "%s is on a file system without locks: make sure that no other run uses it",
            path.parent,
        )
    if file.writable():
        with contextlib.suppress(OSError):  # the lock counts, and not the text
            file.truncate(0)
            file.write(_holder().encode())


@contextlib.contextmanager
def _hold_object(path: epath.Path) -> Iterator[None]:
    """Holds a lease by an object that is renewed: object stores have no locks."""
    _remove_expired(path)
    mine = f"{_holder()}\n{secrets.token_hex(4)}"
    store, name = fsspec.core.url_to_fs(os.fspath(path))
    # The store lets only one of several runs create the object.
    with contextlib.suppress(FileExistsError):
        store.pipe_file(name, f"{mine} 0".encode(), mode="create")
    # Another run may just have removed this lease instead of the expired one.
    time.sleep(_LEASE_SECONDS / 4)
    if not _read(path).startswith(mine):
        raise _in_use(path, _read(path))
    ended = threading.Event()
    thread = threading.Thread(target=_renew, args=(path, mine, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(Exception):  # otherwise the next run waits a minute
            if _read(path).startswith(mine):
                path.unlink(missing_ok=True)


def _remove_expired(path: epath.Path) -> None:
    """Removes a lease whose holder does not renew it.

    Raises:
      JcmError: if the holder renews it.
    """
    before = _read(path)
    if not before:
        return
    seconds = 3 * _LEASE_SECONDS
    logging.info("checking for %d s whether %s is in use", seconds, path.parent)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and (now := _read(path)):
        if now != before:
            raise _in_use(path, now)
        time.sleep(_LEASE_SECONDS / 10)
    path.unlink(missing_ok=True)


def _renew(path: epath.Path, mine: str, ended: threading.Event) -> None:
    """Renews a lease until it has ended; ends the program if another run has it."""
    number = 0
    while not ended.wait(_LEASE_SECONDS):
        number += 1
        try:
            if not _read(path).startswith(mine):
                # From now on this run could overwrite what the other one saves.
                distributed.exit_all(_in_use(path, _read(path)))
                return
            path.write_text(f"{mine} {number}")
        except Exception as error:  # the store's libraries raise many types
            logging.warning("cannot write %s (%s); retrying", path, error)


def _read(path: epath.Path) -> str:
    """Returns the text of a lease, "" if there is none."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _holder() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _in_use(path: pathlib.PurePath, text: str) -> JcmError:
    """Returns the error that names the holder, the first line of a lease's text."""
    holder = text.partition("\n")[0] or "another run"
    return JcmError(
        f"{path.parent} is in use by {holder}: wait, stop that run, or use another"
        " workdir"
    )
