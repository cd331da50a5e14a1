"""Sees what programs do with the files below a folder, at the moment they do it."""

import contextlib
import ctypes
import os
import pathlib
import re
import select
import struct
from typing import Self

# Bits of inotify(7).
_NAMES = {
    0x2: "modify",
    0x8: "close",
    0x40: "moved from",
    0x80: "moved to",
    0x100: "create",
    0x200: "delete",
}
_CREATED, _RENAMED, _IS_FOLDER = 0x100, 0x80, 0x40000000
_HEADER = struct.Struct("iIII")
# Parts of names that differ between two runs.
_RANDOM = (
    (r"incomplete\.\w{6}_", "incomplete.*_"),
    (r"\.jcm-[0-9a-f]{16}\.tmp\b", ".*.tmp"),
    (r"(?<![0-9a-z])[0-9a-f]{12,}(?![0-9a-z])", "*"),
    (r"tfevents\..*", "tfevents"),
    (r"\d+", "#"),
)


class Watch:
    """A context that collects events of a folder and of all folders below it.

    The package `watchdog` holds every event back for half a second.
    """

    def __init__(self, root: pathlib.Path):
        self._root = root
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._folders: dict[int, pathlib.Path] = {}

    def __enter__(self) -> Self:
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._add(self._root)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def wait(self, seconds: float) -> list[str]:
        """Returns the events that have come; waits for one if there is none.

        Each is an action and a path in the folder, such as "create run/samples", with
        `#` for digits and `*` for random letters.
        """
        ready, _, _ = select.select([self._descriptor], [], [], seconds)
        if not ready:
            return []
        found, content = [], os.read(self._descriptor, 2**16)
        while content:
            watch, mask, _, size = _HEADER.unpack_from(content)
            start, end = _HEADER.size, _HEADER.size + size
            name = os.fsdecode(content[start:end].rstrip(b"\0"))
            content = content[end:]
            folder = self._folders.get(watch)
            if folder is None or not name:
                continue
            path = folder / name
            for bit, action in _NAMES.items():
                if mask & bit:
                    found.append(self._text(action, path))
            if mask & _IS_FOLDER and mask & (_CREATED | _RENAMED):
                inside = self._add(path)
                found += inside if mask & _CREATED else []
        return found

    def _add(self, folder: pathlib.Path) -> list[str]:
        """Watches a folder; returns events for what was in it before."""
        found = []
        mask = sum(_NAMES)
        with contextlib.suppress(OSError):  # it may be gone again
            watch = self._libc.inotify_add_watch(
                self._descriptor, os.fsencode(folder), mask
            )
            self._folders[watch] = folder
            for path in sorted(folder.iterdir()):
                found.append(self._text("create", path))
                if path.is_dir() and not path.is_symlink():
                    found += self._add(path)
        return found

    def _text(self, action: str, path: pathlib.Path) -> str:
        return f"{action} {without_random(str(path.relative_to(self._root)))}"


def without_random(path: str) -> str:
    """Returns a path without the parts that differ between two runs."""
    for pattern, text in _RANDOM:
        path = re.sub(pattern, text, path)
    return path
