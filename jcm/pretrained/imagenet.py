"""The thousand classes of ImageNet (ILSVRC 2012), in the order of their labels."""

import functools
import pathlib


@functools.cache
def class_names() -> tuple[str, ...]:
    """Names such as "tench", each once; label i is class i.

    The first word of WordNet for each class; where two bear the same, with what it is
    in brackets: "crane (bird)". Labels are in the order of WordNet's numbers, which are
    the names of the data set's folders.
    """
    lines = pathlib.Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")
    return tuple(line.partition(" ")[2] for line in lines.splitlines())
