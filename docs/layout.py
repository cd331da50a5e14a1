"""Keeps the layout of usage lines and columns in the docstrings of modules."""

import re

import griffe

_BLANK = re.compile(r"(\n[ ]*\n)")
# A paragraph of command lines, of columns, or of code.
_LAID_OUT = re.compile(r"python -m |\S.*[^.\n] {2,}\S|\w+ = \w+\.")


class Layout(griffe.Extension):
    """Turns paragraphs of docstrings that are laid out by hand into blocks of code."""

    def on_module(self, *, mod: griffe.Module, **_: object) -> None:
        """Changes the docstring of a module."""
        if mod.docstring:
            parts = _BLANK.split(mod.docstring.value)
            mod.docstring.value = "".join(map(_block, parts))


def _block(paragraph: str) -> str:
    """Returns a paragraph of a docstring, indented if it is laid out by hand."""
    if paragraph[:1].isspace() or not _LAID_OUT.match(paragraph):
        return paragraph
    return "    " + paragraph.replace("\n", "\n    ")
