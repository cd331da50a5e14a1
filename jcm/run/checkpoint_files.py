"""The files of checkpoints, checked before orbax opens them."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from etils import epath

from jcm.runtime import budget
from jcm.runtime.errors import JcmError, one_line

# The files of a step that orbax reads to list the steps.
_LISTED = ("_CHECKPOINT_METADATA", "metrics/metrics")


@contextlib.contextmanager
def explain_listing(folder: epath.Path) -> Iterator[None]:
    """Turns what orbax raises while it lists the steps in a folder into one line.

    Raises:
      JcmError: also if it would wait for ever for a pipe or a device.
    """
    if "://" not in os.fspath(folder):
        local = pathlib.Path(os.fspath(folder))
        for path in (found for name in _LISTED for found in local.glob(f"*/{name}")):
            # A run may rename or delete its steps meanwhile.
            with contextlib.suppress(FileNotFoundError):
                if not path.is_dir():
                    budget.regular_file(path)
    try:
        yield
    except Exception as error:  # the content of a file can raise many types
        raise JcmError(
            f"cannot list the steps in {folder} ({one_line(error, 120)}): a file"
            f" {_LISTED[0]} is damaged, so move the folder of its step away"
        ) from error


def check(folder: epath.Path) -> None:
    """Checks that each file of a checkpoint has an end, unlike a pipe or a device.

    Raises:
      JcmError: if one has none, or if there is a link to a folder.
      OSError: if one does not exist any more.
    """
    # An object store has no such files, and no folder of this machine has its name.
    for path in pathlib.Path(os.fspath(folder)).rglob("*"):
        if not path.is_dir():
            budget.regular_file(path)
        elif path.is_symlink():
            raise JcmError(f"{path} is a link to a folder: replace it by the folder")
