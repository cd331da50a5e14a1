"""Files that appear whole or not at all."""

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

from jcm.runtime.errors import JcmError


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file that appears whole or not at all.

    Raises:
      JcmError: where it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: pathlib.Path, content: Any) -> None:
    """The same, of plain data as indented JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_tensors(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], about: Mapping[str, str]
) -> None:
    """The same, of contiguous arrays by name as safetensors."""
    with replacing(path) as temporary:
        temporary.touch()  # with the rights that files have here; theirs are private
        rights = temporary.stat().st_mode
        try:
            safetensors.save_file(dict(tensors), temporary, metadata=dict(about))
        except SafetensorError as error:
            raise JcmError(f"cannot write {path} ({error}): make room") from error
        temporary.chmod(rights)


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """What a file of safetensors holds.

    Raises:
      JcmError: where it is missing or not whole.
    """
    try:
        return safetensors.load_file(path)
    except (OSError, SafetensorError) as error:
        raise JcmError(f"cannot read {path} ({error}): copy it again") from error


def new_folder(path: str | os.PathLike) -> pathlib.Path:
    """A folder to write into, which has nothing in it yet.

    Raises:
      JcmError: where it has.
    """
    path = pathlib.Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise JcmError(f"{path} is there already: name a new folder")
    return path


def lock(file: IO[Any], *, wait: bool) -> bool:
    """Locks an open file until it is closed, by whatever end of the program.

    Args:
      file: for the machine's other processes, and on most shared file systems also for
        those of other machines.
      wait: until it is free.

    Returns:
      False where the file system knows no locks.

    Raises:
      BlockingIOError: where another has it, unless this one waits.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        return False
    return True


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Within, no other process is in here with the same folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            lock(file, wait=False)
        except BlockingIOError:
            logging.info("waiting for another process that is at work in %s", folder)
            lock(file, wait=True)
        yield


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary name beside `path`, renamed to it when the block is done.

    Raises:
      JcmError: where the file cannot be written; what was there before is kept.
    """
    # Another process, here or elsewhere, may write the same.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise JcmError(
            f"cannot write {path} ({error.strerror or error}): make room, or use"
            " another --workdir"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
