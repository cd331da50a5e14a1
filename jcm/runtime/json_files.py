"""JSON files, read and compared with the types that they must have."""

import os
import pathlib
from typing import TypeVar

import msgspec

from jcm.runtime import budget
from jcm.runtime.errors import JcmError, one_line

_Kind = TypeVar("_Kind", bound=msgspec.Struct)


def read(path: str | os.PathLike, kind: type[_Kind], remedy: str) -> _Kind:
    """Reads a JSON file.

    Args:
      path: of the file, which is at most `budget.JSON_BYTES` long.
      kind: the type of its content, as in `decode`.
      remedy: the end of the error message, such as "restore it".

    Raises:
      JcmError: if the content has another type; names the file and the field.
      OSError: if the file does not exist or cannot be read.
    """
    path = budget.regular_file(path, budget.JSON_BYTES)
    return decode(path.read_bytes(), kind, str(path), remedy)


def decode(content: bytes, kind: type[_Kind], name: str, remedy: str) -> _Kind:
    """Returns the content of a JSON text.

    Args:
      content: the text in UTF-8.
      kind: the type of the content, which states the types and bounds of its fields.
      name: of the file, for the error message.
      remedy: the end of the error message.

    Raises:
      JcmError: if the content has another type; names the file and the field.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        reason = one_line(error, 200)
        raise JcmError(f"{name} is damaged ({reason}): {remedy}") from error


def read_lines(path: pathlib.Path, kind: type[_Kind], remedy: str) -> list[_Kind]:
    """Reads a file with a JSON text on each line.

    A last line without its end, which a kill may leave, is left out.

    Args:
      path: of the file, which is at most `budget.JSON_BYTES` long.
      kind: the type of each line, as in `decode`.
      remedy: the end of the error message.

    Raises:
      JcmError: if a line has another type; names the file, line and field.
      OSError: if the file does not exist or cannot be read.
    """
    content = budget.regular_file(path, budget.JSON_BYTES).read_bytes()
    *lines, _ = content.split(b"\n")
    return [
        decode(line, kind, f"{path}, line {number},", remedy)
        for number, line in enumerate(lines, 1)
    ]
