"""Files of NumPy arrays, .npz and .npy, read with the names and shapes of the caller.

The header of an array is compared with what the caller expects before its memory is
allocated, and no object is unpickled.
"""

import contextlib
import dataclasses
import io
import math
import os
import pathlib
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np

from jcm.runtime import archives, budget, files
from jcm.runtime.errors import JcmError, one_line, shown

FLOATS = ("float16", "float32", "float64")
"""Dtypes of floating-point numbers."""
WHOLE = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
"""Dtypes of whole numbers."""

# The most bytes that are read at once.
_BLOCK = 2**20
# NumPy writes headers of 64 to 128 bytes.
_LONGEST_HEADER = 10_000
# A compressed array is at most so many times as large as it is in the file, and this
# many bytes more.
_RATIO, _MORE = 3, 256 * 2**20


@dataclasses.dataclass(frozen=True)
class Array:
    """What an array of a file must be.

    Attributes:
      dtypes: names of the dtypes that it may have; their byte order does not matter.
      shape: the length of each axis. A name allows any length above 0, the same for
        all axes of the file that have this name.
      optional: whether the array may be missing.
    """

    dtypes: Sequence[str]
    shape: tuple[int | str, ...]
    optional: bool = False


# The types of the standard library call some files by one name, and some by the other.
_File = IO[bytes] | io.BufferedIOBase


def read(
    path: str | os.PathLike, expected: Mapping[str, Array], remedy: str
) -> dict[str, np.ndarray]:
    """Reads arrays of an .npz file; others that the file has are ignored.

    Args:
      path: of the file.
      expected: what each array must be, by name.
      remedy: the end of the error message, such as "name another file".

    Returns:
      The arrays by name.

    Raises:
      JcmError: if the file cannot be read or is damaged, or an array is missing or not
        as expected, or much larger than in the file.
    """
    lengths: dict[str, int] = {}
    with _opened(path, remedy) as file, archives.opened(file) as archive:
        members = [_member(archive, name) for name in expected]
        found = {}
        for (name, array), member in zip(expected.items(), members, strict=True):
            if member:
                with archive.open(member) as content:
                    found[name] = _read_array(
                        *(content, name, array, lengths, member.file_size)
                    )
            elif not array.optional:
                raise budget.Refused(f"it has no {name}")
        return found


def read_one(path: str | os.PathLike, expected: Array, remedy: str) -> np.ndarray:
    """Reads the array of an .npy file; arguments and errors are those of `read`."""
    with _opened(path, remedy) as file:
        size = os.fstat(file.fileno()).st_size
        return _read_array(file, "the array", expected, {}, size)


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz file; a reader never sees a part of it.

    A file that has these arrays is left as it is, also where nothing can be written.

    Raises:
      JcmError: if it cannot be written.
    """
    if _has(path, arrays):
        return
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **dict[str, Any](arrays))


def _has(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> bool:
    """Returns whether a file has these arrays."""
    expected = {
        name: Array((array.dtype.name,), array.shape) for name, array in arrays.items()
    }
    try:
        found = read(path, expected, "")
    except JcmError:
        return False
    return all(np.array_equal(found[name], array) for name, array in arrays.items())


@contextlib.contextmanager
def _opened(path: str | os.PathLike, remedy: str) -> Iterator[_File]:
    """Opens a file; all that its content can raise in the block becomes one line."""
    try:
        with budget.regular_file(path).open("rb") as file:
            yield file
    except JcmError:
        raise
    except budget.Refused as error:
        raise JcmError(f"{path} cannot be used: {error}: {remedy}") from error
    except Exception as error:  # a damaged file can raise anything
        reason = one_line(error, 200)
        raise JcmError(f"{path} cannot be read ({reason}): {remedy}") from error


def _member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo | None:
    """Returns the part of an .npz file that holds an array; None if it has none."""
    named = [each for each in archive.infolist() if each.filename == f"{name}.npy"]
    if len(named) > 1:
        raise budget.Refused(f"it has {name} several times")
    if not named:
        return None
    (member,) = named
    if member.flag_bits & archives.ENCRYPTED:
        raise budget.Refused(f"{name} is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise budget.Refused(f"{name} is compressed in an unknown way")
    if member.file_size > _RATIO * member.compress_size + _MORE:
        raise budget.Refused(
            f"{name} has {member.file_size:,} bytes in {member.compress_size:,}: at"
            f" most {_RATIO} times as many and {_MORE:,} more are unpacked (save it"
            " with np.savez, which does not compress)"
        )
    return member


def _read_array(
    file: _File, name: str, expected: Array, lengths: dict[str, int], size: int
) -> np.ndarray:
    """Reads an array, in the byte order of this machine.

    Args:
      file: the content, from its beginning.
      name: of the array, for errors.
      expected: what it must be.
      lengths: of the named axes, to which those of this array are added.
      size: of the content in bytes.
    """
    start = file.read(min(size, _LONGEST_HEADER))
    head = io.BytesIO(start)
    shape, in_fortran_order, dtype = _header(head)
    if dtype.name not in expected.dtypes:
        kinds = ", ".join(expected.dtypes)
        raise budget.Refused(f"{name} is of type {dtype.name}, and not {kinds}")
    _check_shape(name, shape, expected.shape, lengths)
    if head.tell() + math.prod(shape) * dtype.itemsize != size:
        raise budget.Refused(
            f"{name} does not have the bytes of an array of shape {shown(shape)}"
        )
    array = np.empty(shape[::-1] if in_fortran_order else shape, dtype)
    left = array.reshape(-1).view(np.uint8).data
    first = head.read()
    left[: len(first)] = first
    left = left[len(first) :]
    while left:
        part = file.read(min(len(left), _BLOCK))
        if not part:
            raise budget.Refused(f"{name} is not complete")
        left[: len(part)] = part
        left = left[len(part) :]
    # The checksum of a member is compared at its end.
    if file.read(1):
        raise budget.Refused(f"{name} has bytes after its end")
    array = array.T if in_fortran_order else array
    return array.astype(dtype.newbyteorder("="), copy=False)


def _header(file: _File) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Returns the shape, whether it is in Fortran order, and the dtype."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in readers:  # the others are for dtypes with names
        raise budget.Refused(f"its format is of version {version}")
    with warnings.catch_warnings():
        # NumPy warns of what Python 2 wrote, as some published statistics.
        warnings.simplefilter("ignore", UserWarning)
        return readers[version](file, max_header_size=_LONGEST_HEADER)


def _check_shape(
    name: str,
    shape: tuple[int, ...],
    expected: tuple[int | str, ...],
    lengths: dict[str, int],
) -> None:
    """Checks the length of each axis, and adds those that have a name to `lengths`."""
    fits = len(shape) == len(expected)
    for axis, length in zip(expected, shape, strict=False):
        known = lengths.setdefault(axis, length) if isinstance(axis, str) else axis
        fits = fits and length == known and length > 0
    if not fits:
        axes = dict.fromkeys(axis for axis in expected if isinstance(axis, str))
        where = ", ".join(f"{axis}={lengths[axis]}" for axis in axes if axis in lengths)
        raise budget.Refused(
            f"{name} has the shape {shown(shape)}, and not"
            f" ({', '.join(map(str, expected))}){where and ' with '}{where}"
        )
