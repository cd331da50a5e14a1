"""Workdirs on object stores such as gs://BUCKET/RUN.

Checkpoints are written to the store directly. All other files of a workdir are small,
and some are appended to or changed in place, which object stores cannot do. They live
in a local folder instead, the mirror: process 0 uploads what has changed in it. A
workdir on a file system that all processes see has no mirror, and nothing is copied.

`fsspec.generic.rsync` cannot do this, since it compares sizes alone and deletes either
nothing or also the checkpoints.
"""

import atexit
import contextlib
import os
import pathlib
import threading
import time
from collections.abc import Iterator

import fsspec
import jax
import numpy as np
from absl import logging
from etils import epath

from jcm.runtime import distributed, leftovers
from jcm.runtime.errors import JcmError, one_line
from jcm.runtime.paths import expanded

# A kill loses at most the numbers of this time; see _GROWTH for samples.
_UPLOAD_SECONDS = 30
# Folders that are only written, or not written by way of the mirror.
_NOT_DOWNLOADED = {"checkpoints", "damaged", "profile", "samples", "snapshots"}
_NOT_COPIED = (".lock", ".tmp")
# The folders of a workdir with files that are written as a whole.
_WRITTEN = ("samples", "evaluation")
# Samples of an evaluation in progress. A store cannot append, so each upload sends the
# whole file. Until another process needs it, it is sent when it has grown by a quarter.
_GROWING, _GROWTH = ".uint8", 1.25

_mirrors: dict[str, "_Mirror"] = {}


class _Mirror:
    """A local folder and the remote folder that it is copied from and to.

    Attributes:
      remote: the remote folder.
      local: the local folder; it is temporary.
    """

    def __init__(self, remote: str):
        """Creates the local folder and downloads the files of the remote one."""
        # With a cache, new files of other processes would never appear.
        fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
        self.remote = epath.Path(remote)
        self._stack = contextlib.ExitStack()
        self.local = self._stack.enter_context(leftovers.temporary_folder("workdir"))
        with self._explain_errors("read"):
            self._store, self._root = fsspec.core.url_to_fs(remote)
        self._uploaded: dict[pathlib.Path, tuple[int, int]] = {}
        self._downloaded: dict[pathlib.Path, str] = {}
        self._busy = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._upload_often, daemon=True)
        self.download()
        atexit.register(self.end)  # for programs that do not call `finish_uploads`

    def download(self) -> None:
        """Copies remote files that are new or have changed over the local ones."""
        with self._busy, self._explain_errors("read"):
            for name, info in self._store.find(self._root, detail=True).items():
                if name.endswith("/"):  # a placeholder that makes a folder visible
                    continue
                relative = pathlib.PurePosixPath(name).relative_to(self._root)
                if ".." in relative.parts:  # it would be outside of the folder
                    raise JcmError(f"its object {name} has a wrong name: delete it")
                path, version = self.local / relative, info["generation"]
                if (
                    not _NOT_DOWNLOADED.isdisjoint(relative.parts[:-1])
                    or path.name.startswith("events.")
                    or path.name.endswith(_NOT_COPIED)
                    or self._downloaded.get(path) == version
                ):
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self._store.cat_file(name))
                self._uploaded[path] = _signature(path)
                self._downloaded[path] = version

    def upload(self, *, everything: bool = True) -> None:
        """Copies local files that have changed, and deletes what was deleted here.

        Args:
          everything: whether to copy files that have grown only a little, too.
        """
        with self._busy, self._explain_errors("write"):
            here = {
                path: _signature(path)
                for path in self.local.rglob("*")
                if path.is_file() and not path.name.endswith(_NOT_COPIED)
            }
            for path, now in here.items():
                before = self._uploaded.get(path)
                can_wait = not everything and _has_hardly_grown(path, before, now)
                if now != before and not can_wait:
                    self._store.pipe_file(self._name(path), path.read_bytes())
                    self._uploaded[path] = now
            for path in self._uploaded.keys() - here.keys():
                with contextlib.suppress(FileNotFoundError):
                    self._store.rm_file(self._name(path))
                del self._uploaded[path]

    def start(self) -> None:
        """Starts to upload changes periodically."""
        if self._thread.ident is None:
            self._thread.start()

    def try_to_upload(self) -> None:
        """Uploads changes, apart from small growth; logs an error as a warning."""
        try:
            self.upload(everything=False)
        except JcmError as error:
            logging.warning("%s; retrying later", error)

    def end(self) -> None:
        """Uploads the remaining changes and deletes the local folder."""
        # Not `is_alive`, after which a signal leaves the thread marked as ended.
        writes = self._thread.ident is not None and not self._ended.is_set()
        self._ended.set()
        try:
            if writes:
                self.upload()
        except JcmError as error:
            # Under another name, no later program deletes it.
            kept = self.local.with_name(self.local.name.replace("workdir", "unsaved"))
            self.local.rename(kept)
            logging.error("%s; the missing files are in %s", error, kept)
        self._stack.close()

    def _upload_often(self) -> None:
        while not self._ended.wait(_UPLOAD_SECONDS):
            self.try_to_upload()

    def _name(self, path: pathlib.Path) -> str:
        """Returns the name of a local file in the store."""
        return f"{self._root}/{path.relative_to(self.local).as_posix()}"

    @contextlib.contextmanager
    def _explain_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except JcmError as error:
            raise JcmError(f"cannot {what} {self.remote}: {error}") from error
        except ImportError as error:
            raise JcmError(
                f"cannot {what} {self.remote} ({one_line(error)}): pip install"
                " 'jcm[gcs]', or use a workdir on a file system"
            ) from error
        except Exception as error:  # the store's libraries raise many types
            reason = one_line(error, 200)
            raise JcmError(
                f"cannot {what} {self.remote} ({type(error).__name__}: {reason}): check"
                " that the bucket exists and that this machine has access to it"
            ) from error


def local_folder(workdir: str | os.PathLike) -> pathlib.Path:
    """Returns the folder to read and write: the workdir itself, or its mirror.

    Raises:
      JcmError: if an object store cannot be read.
    """
    text = os.fspath(workdir).rstrip("/")
    if not text.startswith("gs://"):
        return expanded(workdir)
    if text not in _mirrors:
        _mirrors[text] = _Mirror(text)
    return _mirrors[text].local


def shared_path(path: str | os.PathLike) -> epath.Path:
    """Returns the path under which all processes see a path in a workdir.

    Args:
      path: a workdir, or a path in a folder from `local_folder`.
    """
    path = local_folder(path)
    mirror = _mirror(path)
    if mirror is None:
        return epath.Path(pathlib.Path(path).absolute())
    relative = os.path.relpath(path, mirror.local)
    return mirror.remote if relative == "." else mirror.remote / relative


def begin(workdir: str | os.PathLike) -> None:
    """Prepares a workdir for a program that writes in it.

    Process 0 removes the temporary files that killed programs have left, and starts to
    upload what it writes to an object store.

    Args:
      workdir: from `local_folder`.
    """
    if jax.process_index() != 0:
        return
    if mirror := _mirror(workdir):
        mirror.start()
        return
    root = pathlib.Path(workdir)
    for run in (root, *root.glob("teachers/*")):
        for folder in (run, *map(run.joinpath, _WRITTEN), *run.glob("earlier/*")):
            leftovers.remove(folder)


def upload(path: str | os.PathLike) -> None:
    """Uploads what process 0 has written in the workdir of a path.

    If the store fails, a warning is logged and the upload is repeated later.
    """
    mirror = _mirror(path)
    if mirror and jax.process_index() == 0:
        mirror.start()
        mirror.try_to_upload()


def sync(path: str | os.PathLike) -> None:
    """Waits until every process sees what process 0 has written; all must call this.

    Raises:
      JcmError: in every process, if an object store cannot be written or read.
    """
    mirror = _mirror(path)
    with distributed.fail_together():
        if mirror and jax.process_index() == 0:
            mirror.start()
            mirror.upload()
    with distributed.fail_together():
        if mirror and jax.process_index() != 0:
            mirror.download()


def finish_uploads() -> None:
    """Uploads the remaining changes of all workdirs and deletes their mirrors.

    Call it at the end of a program, while it can still start threads.
    """
    while _mirrors:
        _, mirror = _mirrors.popitem()
        mirror.end()
        atexit.unregister(mirror.end)


def check_same_folder(workdir: str | os.PathLike) -> None:
    """Checks that all processes see the same workdir; every process must call this.

    Raises:
      JcmError: in every process, if one sees another folder.
    """
    if jax.process_count() == 1:
        return
    token = int(distributed.from_main(np.uint64(leftovers.new_token())))
    marker = shared_path(workdir) / leftovers.temporary_name("shared", token)
    with contextlib.ExitStack() as stack:
        with distributed.fail_together():
            if jax.process_index() == 0:
                marker.parent.mkdir(parents=True, exist_ok=True)
                if "://" not in os.fspath(marker):
                    stack.enter_context(leftovers.protected(marker.parent))
                stack.callback(marker.unlink, missing_ok=True)
                marker.write_text("")
        with distributed.fail_together():
            tries = iter(range(20))  # a network file system may show the file late
            while not marker.exists():
                if next(tries, None) is None:
                    raise JcmError(
                        f"{shared_path(workdir)} is not the folder that process 0"
                        " writes in: name a workdir on storage that all processes"
                        " share, or gs://"
                    )
                time.sleep(0.5)


def _mirror(path: str | os.PathLike) -> _Mirror | None:
    """Returns the mirror that a local path is in, or None."""
    parents = {pathlib.Path(path), *pathlib.Path(path).parents}
    return next((each for each in _mirrors.values() if each.local in parents), None)


def _has_hardly_grown(
    path: pathlib.Path, before: tuple[int, int] | None, now: tuple[int, int]
) -> bool:
    size, _ = before or (0, 0)
    return path.suffix == _GROWING and size < now[0] < _GROWTH * size


def _signature(path: pathlib.Path) -> tuple[int, int]:
    """Returns numbers that change with the content of a file."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
