"""What reading a file of a stranger may cost; SECURITY.md states these limits."""

import os
import pathlib
import stat

from jcm.runtime.errors import JcmError

JSON_BYTES = 8 * 2**20
"""The largest JSON file that is read. Its objects take up to 25 times this memory."""

PICTURE_BYTES = 512 * 2**20
"""The largest picture file that is read."""

PICTURE_PIXELS = 178_956_970
"""The most pixels of a picture that is decoded, of which each takes 4 to 16 bytes.

Pillow raises an error for more, too.
"""


def regular_file(path: str | os.PathLike, most: int | None = None) -> pathlib.Path:
    """Returns the path of a file that can be read to its end.

    A device or a pipe may never end, or wait for ever.

    Args:
      path: of the file; links are followed.
      most: the largest size in bytes; None allows every size.

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
            f"{path} has {found.st_size:,} bytes, and at most {most:,} are read: name"
            " another file"
        )
    return path
