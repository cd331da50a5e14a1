"""Which format a checkpoint file of another project has."""

import pathlib
import zipfile

from jcm.runtime import budget
from jcm.runtime.errors import JcmError


def is_torch(path: pathlib.Path) -> bool:
    """Returns whether a file is PyTorch's; otherwise it is taken for one of flax.

    Raises:
      JcmError: if the file cannot be read, or has a format that is never opened.
    """
    if path.suffix == ".pkl":
        raise JcmError(
            f"{path} runs code when it is opened: if you trust it, write its state dict"
            " to a .pt file as docs/checkpoints.md shows, and load that"
        )
    if path.suffix == ".safetensors":
        raise JcmError(
            f"{path} has no config beside its tensors: name the folder it came in"
        )
    try:
        with budget.regular_file(path).open("rb") as file:
            start = file.read(2)
            named = path.suffix in (".pt", ".pth", ".bin")
            return named or start == b"PK" or start[:1] == b"\x80"
    except OSError as error:
        raise JcmError(
            f"cannot read {path} ({error.strerror}): name another file"
        ) from error


def is_compared_by_reader(path: pathlib.Path) -> bool:
    """Returns whether the reader of a checkpoint file detects changed bytes.

    A zip archive, which PyTorch writes since 1.6, has a checksum of each member. Of a
    file of flax, the reader passes what it reads to `first_read.comparing_blocks`.

    Raises:
      JcmError: see `is_torch`.
    """
    return not is_torch(path) or zipfile.is_zipfile(path)
