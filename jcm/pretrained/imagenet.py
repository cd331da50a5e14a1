"""The thousand classes of ImageNet (ILSVRC 2012), in the order of their labels."""

import functools
import pathlib


@functools.cache
def _lines() -> list[list[str]]:
    """Returns the WordNet number and the name of every class."""
    text = pathlib.Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")
    return [line.split(" ", 1) for line in text.splitlines()]


@functools.cache
def other_names() -> dict[str, str]:
    """Returns a map from "tench" to n01440764 and from n01440764 to "tench"."""
    return {a: b for pair in _lines() for a, b in (pair, pair[::-1])}


@functools.cache
def class_names() -> tuple[str, ...]:
    """Returns the unique name of each class, such as "tench", in the order of labels.

    A name is the first word in WordNet, and in brackets what distinguishes classes with
    the same word: "crane (bird)". Labels are in the order of the WordNet numbers, which
    are the names of the folders of the data set.
    """
    return tuple(name for _, name in _lines())
