"""Files that are either complete or absent."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from jcm.runtime import budget, disk, leftovers
from jcm.runtime.errors import JcmError, one_line
from jcm.runtime.paths import expanded


def write_bytes(path: pathlib.Path, content: bytes) -> bool:
    """Writes a file; a reader never sees a part of it.

    A file that has this content is left as it is, also where nothing can be written.

    Returns:
      Whether it was written.

    Raises:
      JcmError: if the file cannot be written.
    """
    with contextlib.suppress(OSError):
        if path.stat().st_size == len(content) and path.read_bytes() == content:
            return False
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return True


def write_text(path: pathlib.Path, text: str) -> bool:
    """Writes a text file in UTF-8, like `write_bytes`.

    Raises:
      JcmError: if the file cannot be written.
    """
    return write_bytes(path, text.encode())


def write_json(path: pathlib.Path, content: Any) -> bool:
    """Writes plain data as indented JSON, like `write_bytes`.

    Raises:
      JcmError: if the file cannot be written.
    """
    return write_text(path, json.dumps(content, indent=2) + "\n")


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
            raise disk.cannot_write(path, error) from error
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


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path, and renames it to `path` at the end of the block.

    Raises:
      JcmError: if the file cannot be written. An older file at `path` is then kept.
    """
    # The name is random because several processes may write the same file at once.
    temporary = path.with_name(leftovers.temporary_name(path.name))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with leftovers.protected(path.parent):
            yield temporary
            os.replace(temporary, path)
    except OSError as error:
        raise disk.cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
