"""One run at a time trains in a workdir."""

import contextlib
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Iterator

import fsspec
import jax
from absl import logging
from etils import epath

from jcm.run import storage
from jcm.runtime import distributed, files
from jcm.runtime.errors import JcmError

# On an object store the holder says so often that it lives; it is believed to be dead
# after three times as long.
_LEASE_SECONDS = 20


@contextlib.contextmanager
def hold(workdir: str | os.PathLike) -> Iterator[None]:
    """Within, no other run trains in this workdir; every process must call.

    Args:
      workdir: as `storage.local_folder` gives it.

    Raises:
      JcmError: where one does already, in every process.
    """
    with contextlib.ExitStack() as stack:
        with distributed.fail_together():
            if jax.process_index() == 0:
                place = storage.shared_path(workdir) / ".lock"
                held = _lease(place) if "://" in os.fspath(place) else _flock(place)
                stack.enter_context(held)
        yield


@contextlib.contextmanager
def _flock(place: epath.Path) -> Iterator[None]:
    """By the file system, which unlocks it too when the holder is killed."""
    path = pathlib.Path(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            locked = files.lock(file, wait=False)
        except BlockingIOError as error:
            file.seek(0)
            raise _taken(place, file.read()) from error
        if not locked:
            logging.warning(
                "%s is on a file system without locks: make sure yourself that no"
                " other run uses it",
                path.parent,
            )
        file.truncate(0)
        file.write(_holder())
        file.flush()
        yield


@contextlib.contextmanager
def _lease(place: epath.Path) -> Iterator[None]:
    """By a note that the holder renews: object stores have no locks."""
    before = _read(place)
    if before:
        seconds = 3 * _LEASE_SECONDS
        logging.info("looking for %d s whether %s is in use", seconds, place.parent)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and (now := _read(place)):
            if now != before:
                raise _taken(place, now.partition("\n")[0])
            time.sleep(_LEASE_SECONDS / 10)
        place.unlink(missing_ok=True)  # its holder is dead
    mine = f"{_holder()}\n{secrets.token_hex(4)}"
    store, path = fsspec.core.url_to_fs(os.fspath(place))
    # Of all that begin at once the store lets one create it.
    with contextlib.suppress(FileExistsError):
        store.pipe_file(path, f"{mine} 0".encode(), mode="create")
    time.sleep(_LEASE_SECONDS / 4)  # another may just have held ours for the dead one's
    if not _read(place).startswith(mine):
        raise _taken(place, _read(place).partition("\n")[0])
    ended = threading.Event()

    def renew() -> None:
        number = 0
        while not ended.wait(_LEASE_SECONDS):
            number += 1
            try:
                if not _read(place).startswith(mine):
                    # What this run would save from now on is in the other's way.
                    distributed.exit_all(_taken(place, _read(place).partition("\n")[0]))
                    return
                place.write_text(f"{mine} {number}")
            except Exception as error:  # the store's; it is tried again
                logging.warning("cannot write %s: %s", place, error)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(Exception):  # at worst the next one waits
            if _read(place).startswith(mine):
                place.unlink(missing_ok=True)


def _read(place: epath.Path) -> str:
    try:
        return place.read_text()
    except FileNotFoundError:
        return ""


def _holder() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _taken(place: epath.Path, holder: str) -> JcmError:
    return JcmError(
        f"{place.parent} is in use by {holder or 'another run'}: wait, stop that run,"
        " or use another --workdir"
    )
