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
import shutil
import tempfile
import threading
from collections.abc import Iterator

import fsspec
import jax
from absl import logging
from etils import epath

from jcm import distributed
from jcm.errors import JcmError

# What a kill costs of the numbers after the last checkpoint.
_PUSH_SECONDS = 30
# What is only ever written, or by others.
_NOT_PULLED = ("checkpoints", "damaged", "profile", "samples")
_NOT_PUSHED = (".lock", ".tmp")

_mirrors: dict[str, "_Mirror"] = {}


class _Mirror:
    """A local folder beside a remote one; the remote one is what counts."""

    def __init__(self, remote: str):
        # Another process's new files would never be seen.
        fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
        self.remote = epath.Path(remote)
        self.local = pathlib.Path(tempfile.mkdtemp(prefix="jcm_workdir_"))
        self._pushed: dict[pathlib.Path, tuple[int, int]] = {}
        self._busy = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._push_often, daemon=True)
        with self._explained("read"):
            self.pull()
        atexit.register(self._end)

    def pull(self) -> None:
        """Copies what is there, over what is here."""
        with self._busy:
            for path in _files(self.remote):
                relative = os.path.relpath(path, self.remote)
                target = self.local / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
                self._pushed[target] = _signature(target)

    def push(self) -> None:
        """Copies what has changed here, and deletes what was deleted here."""
        with self._busy, self._explained("write"):
            here = {
                path: _signature(path)
                for path in self.local.rglob("*")
                if path.is_file() and not path.name.endswith(_NOT_PUSHED)
            }
            for path in here.keys() - {
                path
                for path, as_it_was in self._pushed.items()
                if here.get(path) == as_it_was
            }:
                self._at(path).write_bytes(path.read_bytes())
                self._pushed[path] = here[path]
            for path in self._pushed.keys() - here.keys():
                self._at(path).unlink(missing_ok=True)
                del self._pushed[path]

    def begin(self) -> None:
        """From now on what changes is pushed every so often."""
        if not self._thread.is_alive():
            self._thread.start()

    def _at(self, path: pathlib.Path) -> epath.Path:
        return self.remote / str(path.relative_to(self.local))

    def _push_often(self) -> None:
        while not self._ended.wait(_PUSH_SECONDS):
            try:
                self.push()
            except JcmError as error:
                logging.warning("%s; it is tried again", error)

    def _end(self) -> None:
        self._ended.set()
        try:
            if self._thread.is_alive():  # this process writes
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
            reason = " ".join(str(error).split())[:200]
            raise JcmError(
                f"cannot {what} {self.remote} ({type(error).__name__}: {reason}): look"
                " whether the bucket is there and this machine may use it"
            ) from error


def local(workdir: str | os.PathLike) -> pathlib.Path:
    """The folder to read and write in: the workdir itself, or one in its stead.

    Raises:
      JcmError: where an object store cannot be read.
    """
    text = os.fspath(workdir)
    if not text.startswith("gs://"):
        return pathlib.Path(workdir).expanduser()
    if text not in _mirrors:
        _mirrors[text] = _Mirror(text.rstrip("/"))
    return _mirrors[text].local


def shared(path: str | os.PathLike) -> epath.Path:
    """Where all processes see a file or folder of a workdir that `local` gave."""
    path = local(path)
    found = _mirror(path)
    if found is None:
        return epath.Path(pathlib.Path(path).absolute())
    relative = os.path.relpath(path, found.local)
    return found.remote if relative == "." else found.remote / relative


def push(path: str | os.PathLike) -> None:
    """Makes sure that what process 0 has written is where all see it.

    Raises:
      JcmError: where an object store cannot be written.
    """
    found = _mirror(path)
    if found and jax.process_index() == 0:
        found.begin()
        found.push()


def share(path: str | os.PathLike) -> None:
    """Waits until every process sees what process 0 has written; all must call."""
    push(path)
    distributed.wait(f"share {shared(path)}")
    found = _mirror(path)
    if found and jax.process_index() != 0:
        found.pull()


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
        elif not path.name.startswith("events."):
            yield path


def _signature(path: pathlib.Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
