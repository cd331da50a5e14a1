"""Texts in Markdown that is shown as it was written, whatever a text contains.

The texts may come from files of others: names of classes and models, notes, licences.
Neither Markdown nor HTML in them has an effect.
"""

import re
from collections.abc import Iterable, Sequence

from jcm.runtime.errors import escaped, printable

LONGEST_BLOCK = 20_000
"""A block has at most this many characters of a text."""
_LONGEST_TEXT = 300
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# An underscore within a word has no effect.
_SPECIAL = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")


def text(value: object, longest: int = _LONGEST_TEXT) -> str:
    """Returns a text as part of a line or of a cell, on one line and not too long."""
    line = printable(str(value), longest)
    line = _SPECIAL.sub(r"\\\g<0>", line)
    return re.sub("[&<>]", lambda found: _ENTITIES[found[0]], line)


def code(value: object) -> str:
    """Returns a text in the letters of code, as part of a line."""
    line = printable(str(value), _LONGEST_TEXT)
    if not line:
        return ""
    fence = "`" * (_longest_run(line) + 1)
    space = " " if "`" in (line[0], line[-1]) else ""
    return f"{fence}{space}{line}{space}{fence}"


def block(value: str) -> str:
    """Returns a text of several lines in a block of its own, in the letters of code."""
    if len(value) > LONGEST_BLOCK:
        value = f"{value[:LONGEST_BLOCK]}\n..."
    lines = "\n".join(escaped(line) for line in value.splitlines())
    fence = "`" * max(3, _longest_run(lines) + 1)
    return f"{fence}\n{lines}\n{fence}"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a table.

    Args:
      columns: their titles.
      rows: the cells of each row.
    """
    lines = [columns, *rows]
    made = [f"| {' | '.join(map(text, cells))} |" for cells in lines]
    return "\n".join([made[0], "|---" * len(columns) + "|", *made[1:]])


def _longest_run(text: str) -> int:
    """Returns the length of the longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)
