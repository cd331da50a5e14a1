"""What reading a file of a stranger may cost; SECURITY.md states these limits.

Together they ensure that a file that is refused takes at most 3 times its size and 300
MiB of memory, and 10 seconds of one core; a picture takes the memory of its pixels.
They are far above what a file of weights needs: the largest published network has fewer
than 2,000 tensors.
"""

import contextlib
import io
import os
import pathlib
import stat
from collections.abc import Iterator

from jcm.runtime.errors import JcmError, one_line

JSON_BYTES = 8 * 2**20
"""The largest JSON file that is read. Its objects take up to 25 times this memory."""
TENSORS = 10_000
"""The most tensors in a file of weights."""
ENTRIES = 20_000
"""The most entries of a checkpoint: parameters, averages and moments."""
DIMENSIONS = 8
"""The most dimensions of a tensor; a convolution of images has 4."""
DEPTH = 16
"""How deep the maps of a file of weights may be nested."""
NAME_BYTES = 256
"""The longest name of an entry of a map."""
PICKLE_BYTES = 16 * 2**20
"""The longest pickle, which describes a tensor in about a hundred bytes."""
PICKLE_OPERATIONS = 1_000_000
"""The most operations of a pickle; a tensor takes about 60 of them."""
HEADER_BYTES = 4 * 2**20
"""The longest header of a safetensors file. Reading it takes 15 times this memory."""
DIRECTORY_BYTES = 4 * 2**20
"""The longest directory of a zip archive. Reading it takes 25 times this memory."""
SHARED_BYTES = 64 * 2**20
"""How much larger than the file all tensors of it may be, as several views of one."""
PICTURE_BYTES = 512 * 2**20
"""The largest picture file that is read."""
PICTURE_PIXELS = 178_956_970
"""The most pixels of a picture that is decoded, of which each takes 4 to 16 bytes.

Pillow raises an error for more, too.
"""


class Refused(Exception):
    """The content of a file is not what is read; the message states why."""


def regular_file(
    path: str | os.PathLike,
    most: int | None = None,
    remedy: str = "name another file",
) -> pathlib.Path:
    """Returns the path of a file that can be read to its end.

    A device or a pipe may never end, or wait for ever.

    Args:
      path: of the file; links are followed.
      most: the largest size in bytes; None allows every size.
      remedy: the end of the message about a larger file.

    Raises:
      JcmError: if it is not a regular file, or if it is larger.
      OSError: if it does not exist.
    """
    path = pathlib.Path(path)
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise JcmError(f"{path} is not a regular file: replace it by one")
    if most is not None and found.st_size > most:
        raise JcmError(
            f"{path} has {found.st_size:,} bytes, and at most {most:,} are read:"
            f" {remedy}"
        )
    return path


@contextlib.contextmanager
def opened(path: pathlib.Path, what: str, remedy: str) -> Iterator[io.BufferedReader]:
    """Opens a file that its format describes; all that it can raise becomes one line.

    Args:
      path: of the file.
      what: the file that is expected, such as "a complete checkpoint of flax".
      remedy: the end of the message if its content is another.

    Raises:
      JcmError: if the file cannot be read, or the block raises any exception.
    """
    try:
        with regular_file(path).open("rb") as file:
            yield file
    except JcmError:
        raise
    except OSError as error:
        raise JcmError(
            f"cannot read {path}: {error.strerror or error}: name another file"
        ) from error
    except Exception as error:  # a damaged file can raise anything
        reason = one_line(error, 200)
        raise JcmError(f"{path} is not {what} ({reason}): {remedy}") from error
