"""Workdirs on object stores such as gs://BUCKET/RUN.

Checkpoints are written there directly. All other files of a workdir are small, and some
are appended to or changed in place, which object stores cannot do: they live in a
local folder that is copied to and fro. For a workdir on a file system that all
processes see there is nothing to copy, and nothing here does anything.
"""

import atexit
import contextlib
import os
import pathlib
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator

import fsspec
import jax
import numpy as np
from absl import logging
from etils import epath

from jcm.runtime import distributed
from jcm.runtime.errors import JcmError, one_line

# What a kill costs of the numbers after the last checkpoint; see _GROWTH for samples.
_PUSH_SECONDS = 30
# What is only ever written, or by others.
_NOT_PULLED = ("checkpoints", "damaged", "profile", "samples")
_NEITHER = (".lock", ".tmp")
# Samples under way. A store cannot append, and would be sent all of them each time:
# until they are wanted, it is sent them once they have grown by a quarter.
_GROWING, _GROWTH = ".uint8", 1.25

_mirrors: dict[str, "_Mirror"] = {}


class _Mirror:
    """A local folder beside a remote one; the remote one is what counts."""

    def __init__(self, remote: str):
        # Another process's new files would never be seen.
        fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
        self.remote = epath.Path(remote)
        self.local = pathlib.Path(tempfile.mkdtemp(prefix="jcm_workdir_"))
        self._pushed: dict[pathlib.Path, tuple[int, int]] = {}
        self._pulled: dict[str, tuple[int, float]] = {}
        self._busy = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._push_often, daemon=True)
        self.pull()
        atexit.register(self.end)  # without a program that calls `close`

    def pull(self) -> None:
        """Copies what is there, over what is here."""
        with self._busy, self._explained("read"):
            for path in _files(self.remote):
                stat = path.stat()
                there = stat.length, stat.mtime
                if self._pulled.get(str(path)) == there:
                    continue
                target = self.local / os.path.relpath(path, self.remote)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
                self._pushed[target] = _signature(target)
                self._pulled[str(path)] = there

    def push(self, *, everything: bool = True) -> None:
        """Copies what has changed here, and deletes what was deleted here."""
        with self._busy, self._explained("write"):
            here = {
                path: _signature(path)
                for path in self.local.rglob("*")
                if path.is_file() and not path.name.endswith(_NEITHER)
            }
            for path in here.keys() - {
                path
                for path, as_it_was in self._pushed.items()
                if here.get(path) == as_it_was
            }:
                if not everything and self._can_wait(path, here[path]):
                    continue
                self._at(path).write_bytes(path.read_bytes())
                self._pushed[path] = here[path]
            for path in self._pushed.keys() - here.keys():
                self._at(path).unlink(missing_ok=True)
                del self._pushed[path]

    def _can_wait(self, path: pathlib.Path, now: tuple[int, int]) -> bool:
        """Whether a file has hardly grown since it was pushed."""
        before, _ = self._pushed.get(path, (0, 0))
        return path.suffix == _GROWING and before < now[0] < _GROWTH * before

    def begin(self) -> None:
        """From now on what changes is pushed every so often."""
        if not self._thread.is_alive():
            self._thread.start()

    def _at(self, path: pathlib.Path) -> epath.Path:
        return self.remote / str(path.relative_to(self.local))

    def try_to_push(self) -> None:
        """The same, of what can wait."""
        try:
            self.push(everything=False)
        except JcmError as error:
            logging.warning("%s; it is tried again", error)

    def _push_often(self) -> None:
        while not self._ended.wait(_PUSH_SECONDS):
            self.try_to_push()

    def end(self) -> None:
        """Pushes what is left, and deletes the folder here."""
        writes = self._thread.is_alive()
        self._ended.set()
        try:
            if writes:
                self.push()
        except JcmError as error:
            logging.error("%s; what is missing there lies in %s", error, self.local)
        else:
            shutil.rmtree(self.local, ignore_errors=True)

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except ImportError as error:
            raise JcmError(
                f"cannot {what} {self.remote} ({error}): pip install 'jcm[gcs]', or use"
                " a --workdir on a file system"
            ) from error
        except Exception as error:  # of many kinds, by the store's own libraries
            reason = one_line(error, 200)
            raise JcmError(
                f"cannot {what} {self.remote} ({type(error).__name__}: {reason}): look"
                " whether the bucket is there and this machine may use it"
            ) from error


def local_folder(workdir: str | os.PathLike) -> pathlib.Path:
    """The folder to read and write in: the workdir itself, or one in its stead.

    Raises:
      JcmError: where an object store cannot be read.
    """
    text = os.fspath(workdir).rstrip("/")
    if not text.startswith("gs://"):
        return pathlib.Path(workdir).expanduser()
    if text not in _mirrors:
        _mirrors[text] = _Mirror(text)
    return _mirrors[text].local


def shared_path(path: str | os.PathLike) -> epath.Path:
    """Where all processes see a file or folder of a workdir that `local_folder` gave."""
    path = local_folder(path)
    found = _mirror(path)
    if found is None:
        return epath.Path(pathlib.Path(path).absolute())
    relative = os.path.relpath(path, found.local)
    return found.remote if relative == "." else found.remote / relative


def start_uploads(path: str | os.PathLike) -> None:
    """From now on what process 0 writes is copied to where all see it, now and then."""
    found = _mirror(path)
    if found and jax.process_index() == 0:
        found.begin()


def upload(path: str | os.PathLike) -> None:
    """Copies what process 0 has written to where all see it.

    Where an object store does not take it now, it is tried again later.
    """
    found = _mirror(path)
    if found and jax.process_index() == 0:
        found.begin()
        found.try_to_push()


def finish_uploads() -> None:
    """Writes what is left, while the program can still do so; nothing can follow."""
    while _mirrors:
        _, mirror = _mirrors.popitem()
        mirror.end()
        atexit.unregister(mirror.end)


def sync(path: str | os.PathLike) -> None:
    """Waits until every process sees what process 0 has written; all must call.

    Raises:
      JcmError: where an object store cannot be written or read, in every process.
    """
    found = _mirror(path)
    with distributed.fail_together():
        if found and jax.process_index() == 0:
            found.begin()
            found.push()
    with distributed.fail_together():
        if found and jax.process_index() != 0:
            found.pull()


def check_same_folder(workdir: str | os.PathLike) -> None:
    """Makes sure that all processes see the same folder; every process must call.

    Raises:
      JcmError: where one does not.
    """
    if jax.process_count() == 1:
        return
    token = distributed.from_main(np.uint64(secrets.randbits(64)))
    place = shared_path(workdir) / f".shared.{token:x}.tmp"
    with distributed.fail_together():
        if jax.process_index() == 0:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("")
    with distributed.fail_together():
        tries = iter(range(20))  # a network's file system may be late
        while not place.exists():
            if next(tries, None) is None:
                raise JcmError(
                    f"{shared_path(workdir)} is not the folder that process 0 writes in:"
                    " name a --workdir on storage that all processes share, or gs://"
                )
            time.sleep(0.5)
    if jax.process_index() == 0:
        place.unlink(missing_ok=True)


def _mirror(path: str | os.PathLike) -> _Mirror | None:
    parents = {pathlib.Path(path), *pathlib.Path(path).parents}
    return next((each for each in _mirrors.values() if each.local in parents), None)


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    """What is worth reading; stores list folders that are not there by an error."""
    try:
        found = list(folder.iterdir())
    except FileNotFoundError:
        return
    for path in found:
        if path.is_dir():
            if path.name not in _NOT_PULLED:
                yield from _files(path)
        elif not path.name.startswith("events.") and not path.name.endswith(_NEITHER):
            yield path


def _signature(path: pathlib.Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
