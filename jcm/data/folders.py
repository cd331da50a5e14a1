"""Finds the picture files in a folder, and says what else is in it."""

import collections
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator

from absl import logging

from jcm.data import formats
from jcm.runtime.errors import JcmError

# Folders and files that systems and programs leave behind, in lower case. Those whose
# names begin with a dot are skipped too.
_LEFT_BEHIND = frozenset(
    {
        "@eadir",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "__macosx",
        "__pycache__",
        "desktop.ini",
        "ehthumbs.db",
        "lost+found",
        "system volume information",
        "thumbs.db",
    }
)
# The report names at most this many suffixes, folders or links.
_NAMED_AT_MOST = 8


@dataclasses.dataclass
class Found:
    """What a folder contains.

    Attributes:
      pictures: paths of the picture files, relative to the folder, sorted.
      folders: the folders in the folder, sorted.
      skipped: the number of other files with each suffix.
      upward: links to a folder that they lie in, which are not followed.
      repeated: the number of links to files and folders that are listed already.
      not_searched: the number of folders that are not searched.
    """

    pictures: list[str] = dataclasses.field(default_factory=list)
    folders: list[str] = dataclasses.field(default_factory=list)
    skipped: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    upward: list[str] = dataclasses.field(default_factory=list)
    repeated: int = 0
    not_searched: int = 0

    def report(self, folder: pathlib.Path) -> None:
        """Logs what is not read: one warning, or none.

        The same warning is logged once: a command can open a folder several times.
        """
        parts = [
            f"{count} {suffix or 'without a suffix'}"
            for suffix, count in self.skipped.most_common(_NAMED_AT_MOST)
        ]
        rest = len(self.skipped) - len(parts)
        if rest > 0:
            parts.append(f"files with {rest} other suffixes")
        remedy = ""
        if formats.HEIF_SUFFIXES & self.skipped.keys():
            remedy = f"; {formats.HEIF_REMEDY}"
        used = {pathlib.PurePath(path).parts[0] for path in self.pictures}
        empty = [each for each in self.folders if each not in used]
        for each in empty[:_NAMED_AT_MOST]:
            parts.append(f"the folder {each}, which has no pictures")
        for link in self.upward[:_NAMED_AT_MOST]:
            parts.append(f"the link {link} to a folder above it")
        if self.repeated:
            plural = "s" * (self.repeated > 1)
            parts.append(f"{self.repeated} link{plural} to what is listed already")
        if self.not_searched:
            parts.append(f"{self.not_searched} folder{'s' * (self.not_searched > 1)}")
        if parts:
            what = ", ".join(parts)
            _warn_once(f"{folder}: skipped {what}{remedy}")


@functools.cache
def _warn_once(text: str) -> None:
    logging.warning("%s", text)


def scan(root: pathlib.Path, *, below: bool = True) -> Found:
    """Lists the pictures in a folder.

    Hidden folders and those that programs leave behind are skipped. Links are followed,
    but each folder is entered once and each file is listed once, by a path without
    links if there is one.

    Args:
      root: the folder.
      below: whether the folders in it are searched too.
    """
    found = Found()
    real_root = os.path.realpath(root)
    seen, folders, links = set(), [("", real_root)], collections.deque[str]()
    while folders or links:
        if not folders:
            link = links.popleft()
            real = os.path.realpath(root / link)
            if _is_above(real, root / link):
                found.upward.append(link)
            elif real in seen:
                found.repeated += 1
            elif os.path.isdir(real):
                folders.append((link, real))
            elif os.path.isfile(real) or not os.path.exists(real):
                # A broken link is a picture that cannot be read.
                seen.add(real)
                _add(found, root, link)
            continue
        place, real = folders.pop()
        if real in seen:
            continue
        seen.add(real)
        for entry in _entries(os.path.join(root, place)):
            path = os.path.join(place, entry.name)
            if not below and entry.is_dir():
                found.not_searched += 1
            elif entry.is_symlink():
                links.append(path)
            elif entry.is_dir():
                folders.append((path, os.path.join(real, entry.name)))
                found.folders += [] if place else [path]
            elif entry.is_file():
                seen.add(os.path.join(real, entry.name))
                _add(found, root, path)
    found.pictures.sort()
    return found


def _is_above(folder: str, path: pathlib.Path) -> bool:
    """Returns whether a path lies in a folder, which is given without links."""
    if not os.path.isdir(folder):
        return False
    return os.path.commonpath([folder, os.path.realpath(path.parent)]) == folder


def _entries(folder: str) -> Iterator[os.DirEntry]:
    """Yields what is in a folder, sorted by name, without what is left behind."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise JcmError(
            f"cannot list the folder {folder} ({error.strerror}): make it readable"
        ) from error
    for entry in found:
        if not is_left_behind(entry.name):
            yield entry


def is_left_behind(name: str) -> bool:
    """Returns whether a file or folder is hidden, or left behind by a program."""
    return name.startswith(".") or name.lower() in _LEFT_BEHIND


def _add(found: Found, root: pathlib.Path, path: str) -> None:
    """Adds a file to the pictures, or to the skipped files."""
    full = root / path
    if formats.is_picture(full):
        found.pictures.append(path)
    else:
        found.skipped[full.suffix.lower()] += 1
