"""The classes of pictures in folders: their names, their order, and their pictures."""

import os
import pathlib
import re
import unicodedata
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from absl import logging

from jcm.runtime import budget, json_files
from jcm.runtime.errors import JcmError

# The file that lists the classes in data sets of the tools of NVlabs.
LISTED = "dataset.json"

# Names of folders that hold parts of a data set and not classes, such as train2017.
_SPLIT = re.compile(
    "(dev|eval|evaluation|extra|holdout|test|testing|train|training|unlabell?ed|val"
    "|valid|validation)[-_ ]?[0-9]*"
)
# The files of data sets of NVlabs: 00000/img00000000.png.
_NUMBERED = re.compile(r"[0-9]{5}/img[0-9]{8}\.[a-z]+")
# More classes than this are taken for labels that do not count from 0.
MOST_CLASSES = 100_000
# Its length may be that of a JSON file, and this for each picture.
# ["00000/img00000000.png", 3] and a comma have about 30 bytes.
_BYTES_PER_PICTURE = 100
_REMEDY = (
    'replace it by pairs of a file and a class 0, 1, ..., set "labels" to null to put'
    " all pictures into one class, or delete it to take sub-folders for classes"
)
_Label = Annotated[int, msgspec.Meta(ge=0, lt=MOST_CLASSES)]
# An error or a warning names at most this many folders.
_NAMED_AT_MOST = 5


def readable(name: str) -> str:
    r"""Returns the name of a file as text in the composed form of Unicode.

    The bytes of a name that is not UTF-8 are written as numbers, such as \xe9.
    """
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", text)


def in_order(names: set[str]) -> tuple[str, ...]:
    """Sorts the names of classes: by number if all are whole numbers, else as text."""
    if all(re.fullmatch("-?[0-9]+", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def of_folders(
    root: pathlib.Path, paths: Sequence[str]
) -> tuple[tuple[str, ...], list[int]]:
    """Takes the first-level folders for classes.

    Without such folders, or if they only divide numbered files, there is one class with
    the name of the root.

    Args:
      root: the folder, for its name and for messages.
      paths: the pictures, relative to the root.

    Returns:
      The names of the classes, and the label of each picture.

    Raises:
      JcmError: if pictures lie beside the folders, the folders are splits, or two have
        the same name in different forms of Unicode.
    """
    parts = [pathlib.PurePath(path).parts for path in paths]
    loose = [path for path, names in zip(paths, parts, strict=True) if len(names) == 1]
    folders = {first for first, *rest in parts if rest}
    if not folders or all(_NUMBERED.fullmatch(path) for path in paths):
        return (readable(root.name),), [0] * len(paths)
    if loose:
        raise JcmError(
            f"{root} has sub-folders, which are classes, and {len(loose)} pictures"
            f" outside them, such as {loose[0]}: move these into a sub-folder"
        )
    _check_not_splits(root, folders)
    _warn_of_one_folder(root, parts)
    names = {folder: readable(folder) for folder in folders}
    ordered = in_order(set(names.values()))
    if len(ordered) < len(folders):
        twice = next(name for name in ordered if list(names.values()).count(name) > 1)
        raise JcmError(
            f"{root} has several folders that are named {twice!r} in different forms of"
            " Unicode: rename all but one"
        )
    numbers = {name: number for number, name in enumerate(ordered)}
    return ordered, [numbers[names[first]] for first, *_ in parts]


def _check_not_splits(root: pathlib.Path, folders: set[str]) -> None:
    """Raises an error if all first-level folders are parts of a data set."""
    if not all(_SPLIT.fullmatch(folder.lower()) for folder in folders):
        return
    names = sorted(folders)
    which = next((name for name in names if "train" in name.lower()), names[0])
    raise JcmError(
        f"the sub-folders of {root} ({', '.join(names)}) are parts of a data set and"
        f" not classes: pass one, such as --config.data.path={root / which}"
    )


def _warn_of_one_folder(root: pathlib.Path, parts: Sequence[tuple[str, ...]]) -> None:
    """Warns if the only class is a folder of several folders."""
    folders = sorted({names[:2] for names in parts if len(names) > 2})
    if len({names[0] for names in parts}) > 1 or len(folders) < 2:
        return
    some = ", ".join(name for _, name in folders[:_NAMED_AT_MOST])
    more = ", ..." if len(folders) > _NAMED_AT_MOST else ""
    logging.warning(
        "%s has one sub-folder, which is the only class: if its sub-folders (%s%s) are"
        " the classes, pass --config.data.path=%s",
        *(root, some, more, root / parts[0][0]),
    )


class _Listed(msgspec.Struct):
    """The content of dataset.json: the class of each file."""

    labels: list[tuple[str, _Label]] | msgspec.UnsetType | None = msgspec.UNSET


def most_bytes(pictures: int) -> int:
    """Returns how long a file dataset.json of so many pictures may be."""
    return budget.JSON_BYTES + pictures * _BYTES_PER_PICTURE


def read_list(root: pathlib.Path, pictures: int) -> bytes:
    """Returns the content of dataset.json in a folder; empty if there is none.

    Args:
      root: the folder.
      pictures: how many pictures are in it.

    Raises:
      JcmError: if it is not a regular file, too long, or cannot be read.
    """
    path = root / LISTED
    if not os.path.lexists(path) or path.is_dir():
        return b""
    try:
        return budget.regular_file(path, most_bytes(pictures)).read_bytes()
    except OSError as error:
        raise JcmError(f"cannot read {path} ({error.strerror}): {_REMEDY}") from error


def of_list(
    root: pathlib.Path, content: bytes, paths: Sequence[str]
) -> tuple[tuple[str, ...], list[int]] | None:
    """Reads the classes from the file dataset.json of the tools of NVlabs.

    Args:
      root: the folder or zip file, for its name and for messages.
      content: of the file.
      paths: the pictures, relative to the root.

    Returns:
      The numbers of the classes as names, and the label of each picture; one class with
      the name of the root if the file lists none. None if the file is of another kind,
      which is logged.

    Raises:
      JcmError: if the file is damaged, has labels that are not whole numbers, lists a
        picture with two labels, or lacks a picture.
    """
    # Other JSON is only checked, which takes no memory.
    kind: Any = _Listed if re.match(rb"\s*{", content) else msgspec.Raw
    listed = json_files.decode(content, kind, str(root / LISTED), _REMEDY)
    if not isinstance(listed, _Listed) or listed.labels is msgspec.UNSET:
        logging.warning('%s has no "labels", and is not used', root / LISTED)
        return None
    if not listed.labels:
        name = root.stem if root.suffix == ".zip" else root.name
        return (readable(name),), [0] * len(paths)
    found: dict[str, int] = {}
    for path, label in listed.labels:
        if found.setdefault(path.replace("\\", "/"), label) != label:
            raise JcmError(
                f"{root / LISTED} lists {path} with several labels: keep one"
            )
    missing = [path for path in paths if _with_slashes(path) not in found]
    if missing:
        raise JcmError(
            f"{root / LISTED} has no label for {len(missing)} pictures, such as"
            f" {missing[0]}: add the labels, or remove the pictures"
        )
    absent = len(found) - len(paths)
    if absent > 0:
        logging.warning("%s lists %d files that do not exist", root / LISTED, absent)
    names = tuple(map(str, range(max(found.values()) + 1)))
    return names, [found[_with_slashes(path)] for path in paths]


def _with_slashes(path: str) -> str:
    return path.replace(os.sep, "/")
