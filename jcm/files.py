"""Files that appear whole or not at all."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator

from jcm.errors import JcmError


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file that appears whole or not at all.

    Raises:
      JcmError: where it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary name beside `path`, renamed to it when the block is done.

    Raises:
      JcmError: where the file cannot be written; what was there before is kept.
    """
    # Another process, here or elsewhere, may write the same.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise JcmError(
            f"cannot write {path} ({error.strerror or error}): make room, or use"
            " another --workdir"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
