"""Paths that a user names. This file imports nothing large."""

import os
import pathlib

from jcm.runtime.errors import JcmError, nearest, shown


def expanded(path: str | os.PathLike) -> pathlib.Path:
    """Returns a path with the home folder in place of `~` or `~NAME`.

    Every path that a user names goes through this function, since a shell does not
    replace a `~` in the middle of a flag, and Python never does.

    Raises:
      JcmError: if there is no user NAME, or if it is not a path.
    """
    try:
        return pathlib.Path(path).expanduser()
    except TypeError:
        raise JcmError(f"{shown(path)} must be a path") from None
    except RuntimeError:
        raise JcmError(f"{path} begins with an unknown user: name a path") from None


def resolved(path: str | os.PathLike) -> pathlib.Path:
    """Returns the absolute path without links, with `~` expanded.

    A link to itself stays, while `pathlib.Path.resolve` raises an error of its own.

    Raises:
      JcmError: as `expanded` does.
    """
    return pathlib.Path(os.path.realpath(expanded(path)))


def nearest_path(path: str | os.PathLike, inside: str = "") -> pathlib.Path | None:
    """Returns the path in the same folder whose name is nearest to a wrong one.

    Args:
      path: what does not exist, or is not what it should be.
      inside: a file that the result must contain; "" for any result.
    """
    path = pathlib.Path(path)
    try:
        others = [other for other in path.parent.iterdir() if other.name != path.name]
    except OSError:
        return None
    names = [other.name for other in others if (other / inside).exists()]
    found = nearest(path.name, names)
    return path.with_name(found) if found else None
