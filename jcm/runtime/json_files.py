"""JSON files, read and compared with the types that they must have."""

import os
import pathlib
import re
from collections.abc import Iterator
from types import GenericAlias, UnionType
from typing import Annotated, TypeVar

import msgspec
from absl import logging

from jcm.runtime import budget
from jcm.runtime.errors import JcmError, one_line

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""The type of a whole number that is not negative."""

_Kind = TypeVar("_Kind")
# The remedy for a file of lines that cannot be read.
_MOVE = "move it away"
# The end of a message of msgspec: the place of a value, such as "$.starts[0].step".
_PLACE = re.compile(r"(.*) - at `(?:key in )?\$\.?(.*)`", re.DOTALL)


def read(
    path: str | os.PathLike, kind: type[_Kind] | GenericAlias | UnionType, remedy: str
) -> _Kind:
    """Reads a JSON file.

    Args:
      path: of the file, which is at most `budget.JSON_BYTES` long.
      kind: the type of its content, as in `decode`.
      remedy: the end of the error message, such as "restore it".

    Raises:
      JcmError: if the file cannot be read, or its content has another type; names the
        file and the field.
      FileNotFoundError: if there is no such file.
    """
    try:
        content = budget.regular_file(path, budget.JSON_BYTES, remedy).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"there is no {path}: {remedy}") from error
    except OSError as error:
        raise JcmError(f"cannot read {path} ({error.strerror}): {remedy}") from error
    return decode(content, kind, str(path), remedy)


def decode(
    content: bytes, kind: type[_Kind] | GenericAlias | UnionType, name: str, remedy: str
) -> _Kind:
    """Returns the content of a JSON text.

    Args:
      content: the text in UTF-8.
      kind: the type of the content, which states the types and bounds of its fields: a
        `msgspec.Struct`, a `TypedDict`, a dataclass, or containers of these.
      name: of the file, for the error message.
      remedy: the end of the error message.

    Raises:
      JcmError: if the content has another type; names the file and the field.
    """
    return _decode(msgspec.json.Decoder(kind), content, name, remedy)


def lines(
    path: pathlib.Path,
    kind: type[_Kind] | GenericAlias | UnionType,
    most: int | None = None,
) -> Iterator[_Kind | None]:
    """Reads a file with a JSON text on each line.

    A kill may cut a line short at any time. The damaged lines are logged at the end,
    all in one line of the log.

    Args:
      path: of the file; each line has at most `budget.JSON_BYTES`.
      kind: the type of each line, as in `decode`.
      most: the largest size of the file in bytes; None allows every size.

    Yields:
      The content of each line; None if it is damaged.

    Raises:
      JcmError: if it is not a regular file, larger than `most`, or cannot be read.
      FileNotFoundError: if there is no such file.
    """
    decoder, unused = msgspec.json.Decoder(kind), "the line is not used"
    first, damaged, number, begins = "", 0, 0, True
    for piece in pieces(path, most):
        is_start, begins = begins, piece.endswith(b"\n")
        if not is_start:
            continue
        number += 1
        name, reason, found = f"{path}, line {number},", "", None
        if begins:
            try:
                found = _decode(decoder, piece, name, unused)
            except JcmError as error:
                reason = str(error)
        else:
            reason = f"{name} is incomplete: {unused}"
        if reason:
            first, damaged = first or reason, damaged + 1
        yield found
    if damaged:
        others = f", nor are {damaged - 1} others" if damaged > 1 else ""
        logging.warning("%s%s", first, others)


def pieces(path: pathlib.Path, most: int | None = None) -> Iterator[bytes]:
    """Yields the lines that `lines` decodes; a line that is too long is in pieces.

    Args and errors are those of `lines`. One piece at a time is in memory, which has at
    most `budget.JSON_BYTES`. The last piece of a line ends with its newline.
    """
    try:
        with budget.regular_file(path, most, _MOVE).open("rb") as file:
            while piece := file.readline(budget.JSON_BYTES):
                yield piece
    except FileNotFoundError:
        raise
    except OSError as error:
        raise JcmError(f"cannot read {path} ({error.strerror}): {_MOVE}") from error


def _decode(
    decoder: msgspec.json.Decoder[_Kind], content: bytes, name: str, remedy: str
) -> _Kind:
    """Decodes a JSON text; see `decode`."""
    try:
        return decoder.decode(content)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        reason = one_line(error, 300)
        if found := _PLACE.fullmatch(reason):
            reason = f"{found[2]}: {found[1]}"
        raise JcmError(f"{name} is damaged ({reason}): {remedy}") from error
