"""Says why a file cannot be written, and what to do about it."""

import contextlib
import errno
import os
import pathlib
import re
import shutil
from collections.abc import Iterator

from jcm.runtime.errors import JcmError, one_line

# A file system with less free space than this counts as full.
_FULL_BYTES = 2**14
# Longer messages of libraries are shortened.
_REASON = 160

# What to do, by the error of the system. The text may name the folder.
_FREE_SPACE = "free some space in {folder}, or use another folder"
_REMEDIES = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: f"{_FREE_SPACE}, and check the largest file size (ulimit -f)",
    errno.EROFS: "{folder} cannot be written, so use another folder",
    errno.EACCES: "this user may not write in {folder}, so use another folder",
    errno.EPERM: "this user may not write in {folder}, so use another folder",
    errno.EMFILE: "raise the number of open files (ulimit -n)",
    errno.ENFILE: "raise the number of open files of the machine",
    errno.EIO: "check the disk or the network that {folder} is on",
    errno.ESTALE: "check the disk or the network that {folder} is on",
    errno.EISDIR: "move the folder of this name away",
    errno.ENAMETOOLONG: "use a shorter name",
}


def cannot_write(
    path: str | os.PathLike,
    error: BaseException | None = None,
    what: str = "",
) -> JcmError:
    """Returns the error for a file or a folder that cannot be written.

    The message names the path, the reason and the remedy. It looks at the place too,
    because many libraries report something else than what has happened.

    Args:
      path: what cannot be written.
      error: of the system or of a library; None if it is not known.
      what: the beginning of the message; by default, that `path` cannot be written.
    """
    what = what or f"cannot write {os.fspath(path)}"
    if "://" in os.fspath(path):
        return JcmError(
            f"{what}{_reason(error)}: check that the bucket exists and that this"
            " machine has access to it"
        )
    return JcmError(f"{what}{_reason(error)}: {_remedy(pathlib.Path(path), error)}")


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Turns errors of the system in a block into one that names the file.

    Raises:
      JcmError: if the block raises OSError.
    """
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def _remedy(path: pathlib.Path, error: BaseException | None) -> str:
    """Returns what to do about a path that cannot be written."""
    folder = path.absolute()
    missing = None
    while not folder.exists() and folder != folder.parent:
        folder, missing = folder.parent, folder
    if missing is None:
        folder = path.absolute().parent
    if not folder.is_dir():
        return f"{folder} is a file and not a folder: move it away"
    number = _number(error)
    if number in _REMEDIES and number != errno.EISDIR:
        return _REMEDIES[number].format(folder=folder)
    if missing not in (None, path.absolute()):
        return f"{missing} does not exist any more: restore it, or use another folder"
    if number == errno.ENOENT:
        return f"a part of {folder} was deleted meanwhile: use another folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return _REMEDIES[errno.EROFS].format(folder=folder)
    with contextlib.suppress(OSError):
        if shutil.disk_usage(folder).free < _FULL_BYTES:
            return _FREE_SPACE.format(folder=folder)
    if path.is_dir() and number == errno.EISDIR:
        return _REMEDIES[errno.EISDIR]
    # The most frequent cause, if a library does not name the cause.
    return _FREE_SPACE.format(folder=folder) if number is None else "use another folder"


def _reason(error: BaseException | None) -> str:
    """Returns the reason of an error in brackets; "" without an error."""
    if error is None:
        return ""
    number = _number(error)
    if number is not None:
        return f" ({os.strerror(number)})"
    return f" ({type(error).__name__}: {one_line(error, _REASON)})"


def _number(error: BaseException | None) -> int | None:
    """Returns the number of the system's error that is behind an error, or None.

    The libraries that write checkpoints and records are in C++, and only the text of
    their errors has it.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno:
            return error.errno
        text = str(error)
        if found := re.search(r"os_error_code='(\d+)'", text):
            return int(found[1])
        for number in _REMEDIES:
            if os.strerror(number) in text:
                return number
        error = error.__cause__ or error.__context__
    return None
