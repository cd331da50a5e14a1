"""The thousand classes of ImageNet (ILSVRC 2012), in the order of their labels."""

import functools
import pathlib


@functools.cache
def _lines() -> list[tuple[str, str]]:
    """Number and name of every class."""
    text = pathlib.Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")
    return [tuple(line.split(" ", 1)) for line in text.splitlines()]


@functools.cache
def other_names() -> dict[str, str]:
    """From "tench" to n01440764, and from n01440764 to "tench"."""
    return {a: b for pair in _lines() for a, b in (pair, pair[::-1])}


@functools.cache
def class_names() -> tuple[str, ...]:
    """Names such as "tench", each once; label i is class i.

    The first word of WordNet for each class; where two bear the same, with what it is
    in brackets: "crane (bird)". Labels are in the order of WordNet's numbers, which are
    the names of the data set's folders.
    """
    return tuple(name for _, name in _lines())
