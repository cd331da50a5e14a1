"""What a prepared data set must be: recorded when it is prepared, compared when opened.

The record, prepared.json, has the length and the SHA-256 of each file. The files of
records are compared by their hash, once in a process, if they have at most 64 MiB in
all. Of larger ones only the length is compared, so that a start does not read them:
ArrayRecord detects damage when a record is read.
"""

import pathlib
from typing import Annotated

import msgspec
import numpy as np
from jaxtyping import Int

from jcm.data.records import Batch, Records
from jcm.runtime import files, hashes, json_files
from jcm.runtime.errors import JcmError, one_line

NAME = "prepared.json"
"""The name of the record."""
# The files of records are hashed if they have at most this many bytes in all.
_HASHED = 64 * 2**20


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file must be."""

    bytes: Annotated[int, msgspec.Meta(ge=0)]
    sha256: str


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a folder must hold: files by name."""

    files: dict[str, _File]


def write(folder: pathlib.Path) -> None:
    """Records the files of a data set that was just prepared.

    Raises:
      JcmError: if the record cannot be written.
    """
    found = {
        path.name: _File(path.stat().st_size, hashes.sha256(path))
        for path in sorted(folder.iterdir())
    }
    files.write_json(folder / NAME, msgspec.to_builtins(_Record(found)))


def check(folder: pathlib.Path) -> None:
    """Checks that the files of a prepared data set are as they were prepared.

    Raises:
      JcmError: if one is missing or has changed, or if there is no record.
    """
    try:
        known = json_files.read(folder / NAME, _Record, remedy(folder)).files
        total = sum(file.bytes for name, file in known.items() if _is_large(name))
        for name, file in known.items():
            size = (folder / name).stat().st_size
            if size != file.bytes:
                raise _changed(folder, f"{name} has {size} bytes, not {file.bytes}")
            if total > _HASHED and _is_large(name):
                continue
            if hashes.known(folder / name) != file.sha256:
                raise _changed(folder, f"{name} has another SHA-256")
    except OSError as error:
        raise _changed(folder, one_line(error)) from error


def remedy(folder: pathlib.Path) -> str:
    """Returns the end of an error message about a damaged folder."""
    return f"delete {folder} to prepare the data set again"


def _is_large(name: str) -> bool:
    """Returns whether a file holds records."""
    return ".array_record-" in name


def _changed(folder: pathlib.Path, reason: str) -> JcmError:
    return JcmError(
        f"the data set in {folder} is not as it was prepared ({reason}):"
        f" {remedy(folder)}"
    )


class Checked:
    """Records of a prepared data set; one that cannot be read is an error of one line.

    Attributes:
      folder: of the data set.
    """

    def __init__(self, records: Records, folder: pathlib.Path):
        """Takes records that may raise anything for a damaged file."""
        self._records, self.folder = records, folder

    def __len__(self) -> int:
        return len(self._records)

    def take(self, numbers: Int[np.ndarray, " n"]) -> Batch:
        """Returns a new copy of some records.

        Raises:
          JcmError: names the first record that cannot be read.
        """
        try:
            return self._records.take(numbers)
        except (MemoryError, IndexError):  # no damage
            raise
        except Exception as error:  # array_record raises many types
            for i in range(len(numbers) if len(numbers) > 1 else 0):
                self.take(numbers[i : i + 1])  # raises at the first that is damaged
            several = f" and {len(numbers) - 1} others" if len(numbers) > 1 else ""
            raise JcmError(
                f"record {numbers[0]}{several} of the data set in {self.folder}"
                f" cannot be read ({one_line(error, 200)}): {remedy(self.folder)}"
            ) from error
