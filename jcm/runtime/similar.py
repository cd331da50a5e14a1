"""Which field of a config was meant by a name that no field has."""

from collections.abc import Callable, Iterable, Sequence

from jcm.runtime.errors import nearest

# What other programs call a field, and its name here.
_OTHER_NAMES = {
    "n": "num_images",
    "num": "num_images",
    "count": "num_images",
    "epochs": "num_steps",
    "iterations": "num_steps",
    "iters": "num_steps",
    "max_steps": "num_steps",
    "data": "path",
    "data_dir": "path",
    "dataset": "path",
}


def fields(
    name: str, known: Iterable[str], sections: Sequence[str] = ()
) -> tuple[str, ...]:
    """Returns the dotted names of the fields that a wrong name is like.

    A field is like a name if its own name, without the sections, is equal to it, has
    its letters as initials (lr: learning_rate), or has all its words (batch:
    batch_size). The first of these that finds fields in a probable section counts;
    otherwise an equal name or initials in any section.

    Args:
      name: the wrong name, with or without sections.
      known: the dotted names of all fields.
      sections: where fields are probable, most probable first; before these comes the
        section in `name`.
    """
    section, _, short = name.rpartition(".")
    short = short.replace("-", "_")
    short = _OTHER_NAMES.get(short, short)
    known = likely(name, known)
    for is_like in _LIKE:
        found = [each for each in known if is_like(short, each.rpartition(".")[2])]
        for probable in (section, *sections):
            inside = [each for each in found if each.startswith(f"{probable}.")]
            if inside:
                return tuple(inside)
    for is_like in _LIKE[:2]:
        found = [each for each in known if is_like(short, each.rpartition(".")[2])]
        if found:
            return tuple(found)
    return ()


def misspelt(name: str, known: Iterable[str]) -> tuple[str, ...]:
    """Returns the dotted names of the fields whose own name is spelt like a name.

    Those in the section of the name count alone, if there are any.
    """
    section, _, short = name.rpartition(".")
    known = likely(name, known)
    found = nearest(short, {each.rpartition(".")[2]: None for each in known})
    named = tuple(each for each in known if each.rpartition(".")[2] == found)
    return tuple(each for each in named if each.startswith(f"{section}.")) or named


def likely(name: str, known: Iterable[str]) -> list[str]:
    """Returns the fields that a name may mean.

    The fields of `teacher_train` have the names of fields in other sections, which are
    meant unless the name says teacher.

    Args:
      name: a name, with or without sections.
      known: the dotted names of all fields.
    """
    all_meant = name.startswith("teacher")
    return [each for each in known if all_meant or not each.startswith("teacher_train")]


def _is_equal(name: str, field: str) -> bool:
    return name == field


def _has_initials(name: str, field: str) -> bool:
    return len(name) > 1 and name == "".join(word[:1] for word in field.split("_"))


def _has_words(name: str, field: str) -> bool:
    return set(name.split("_")) <= set(field.split("_"))


# The first finds the most probable fields.
_LIKE: tuple[Callable[[str, str], bool], ...] = (_is_equal, _has_initials, _has_words)
