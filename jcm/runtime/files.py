"""Files that are either complete or absent, and locks on them."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import secrets
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np
from absl import logging
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from jcm.runtime import budget
from jcm.runtime.errors import JcmError, one_line
from jcm.runtime.paths import expanded


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file; a reader never sees a part of it.

    Raises:
      JcmError: if the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes plain data as indented JSON, like `write_text`.

    Raises:
      JcmError: if the file cannot be written.
    """
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_tensors(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], about: Mapping[str, str]
) -> None:
    """Writes contiguous arrays as a safetensors file, like `write_text`.

    Args:
      path: of the file.
      tensors: arrays by name.
      about: the metadata of the file.

    Raises:
      JcmError: if the file cannot be written.
    """
    with replacing(path) as temporary:
        # safetensors makes files that only their owner may read. This file gets the
        # usual permissions instead.
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            safetensors.save_file(dict(tensors), temporary, metadata=dict(about))
        except SafetensorError as error:
            raise JcmError(
                f"cannot write {path} ({one_line(error)}): free some space"
            ) from error
        temporary.chmod(mode)


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a safetensors file by name.

    Raises:
      JcmError: if the file is missing or incomplete, or its header is too long.
    """
    try:
        with budget.regular_file(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > budget.HEADER_BYTES:
            raise JcmError(
                f"{path} has a header of {length:,} bytes, and at most"
                f" {budget.HEADER_BYTES:,} are read: copy it again"
            )
        return safetensors.load_file(path)
    except JcmError:
        raise
    except Exception as error:  # NumPy cannot hold all that the format describes
        reason = one_line(error, 200)
        raise JcmError(f"cannot read {path} ({reason}): copy it again") from error


def new_folder(path: str | os.PathLike) -> pathlib.Path:
    """Returns the path of a folder to write into; it must be missing or empty.

    Raises:
      JcmError: if the path is a file or a folder with files in it.
    """
    path = expanded(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise JcmError(f"{path} exists already: name a new folder")
    return path


def lock(file: IO[Any], *, wait: bool) -> bool:
    """Locks an open file until it is closed or the process ends, even by a kill.

    The lock excludes the other processes of the machine. On most shared file systems
    it also excludes those of other machines. The package `filelock` makes the same
    system call, but leaves file systems without locks to the caller.

    Args:
      file: the open file.
      wait: whether to wait until another holder releases it.

    Returns:
      False if the file system does not support locks.

    Raises:
      BlockingIOError: if another process holds the lock and `wait` is False.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        return False
    return True


@contextlib.contextmanager
def exclusive(folder: pathlib.Path) -> Iterator[None]:
    """Creates a folder and excludes other processes from this block for it.

    On a file system without locks it excludes no process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            lock(file, wait=False)
        except BlockingIOError:
            logging.info("waiting for another process that uses %s", folder)
            lock(file, wait=True)
        yield


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path, and renames it to `path` at the end of the block.

    Raises:
      JcmError: if the file cannot be written. An older file at `path` is then kept.
    """
    # The name is random because several processes may write the same file at once.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise JcmError(
            f"cannot write {path} ({error.strerror or error}): free some space, or use"
            " another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
