"""Finds the picture files in a folder."""

import os
import pathlib
from collections.abc import Iterator

from jcm.data import formats


def find(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the picture files in and below a folder, in any order.

    Hidden files and folders are skipped.

    Args:
      folder: the folder; symbolic links in it are followed.
    """
    for place, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            path = pathlib.Path(place, name)
            if not name.startswith(".") and formats.is_picture(path):
                yield path
