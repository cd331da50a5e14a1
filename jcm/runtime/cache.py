"""The cache: downloads, prepared data, statistics and compiled programs."""

import functools
import os
import pathlib
import stat

from absl import logging

from jcm.runtime import leftovers
from jcm.runtime.paths import expanded


def folder(kind: str) -> pathlib.Path:
    """Returns the folder of one kind of file, in $JCM_CACHE or ~/.cache/jcm.

    A cache that other users can write is reported once, since compiled programs and
    most weights of the cache are trusted. A folder in it is reported only if the cache
    is not.
    """
    root = expanded(os.environ.get("JCM_CACHE") or "~/.cache/jcm")
    found = root / kind
    if not _report(root):
        _report(found)
    _tidy(found)
    return found


@functools.cache
def _tidy(path: pathlib.Path) -> None:
    """Removes what a kill has left of the files that were being written, once."""
    for each in (path, *path.glob("*/")):
        leftovers.remove(each)


@functools.cache
def _report(path: pathlib.Path) -> bool:
    """Warns of a folder that other users can write, and returns whether they can."""
    try:
        found = path.stat()
    except OSError:
        return False
    if can_write := _others_can_write(found):
        logging.warning(
            "other users can write %s, so that programs and weights in it may be"
            " theirs: run `chmod go-w %s`, or set JCM_CACHE to a folder of your own",
            *(path, path),
        )
    return can_write


def _others_can_write(found: os.stat_result) -> bool:
    """Returns whether a user other than this one and root can write a folder.

    For root, its owner does not count: in a container, root works for the user who has
    mounted the folder.
    """
    if os.getuid() and found.st_uid not in (0, os.getuid()):
        return True
    # Many systems give each user a group of the same number, with no other member.
    private = found.st_gid == found.st_uid
    return bool(found.st_mode & (stat.S_IWOTH | (0 if private else stat.S_IWGRP)))
