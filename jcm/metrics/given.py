"""Pictures that a user names, to score or to compare with, as data sets."""

import zipfile

import numpy as np
from ml_collections import ConfigDict

from jcm import data
from jcm.data import Dataset
from jcm.data import given as given_data
from jcm.runtime.errors import JcmError, one_line
from jcm.runtime.paths import expanded

UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)
"""What numpy raises for a file that is not an .npz of plain arrays."""


def of_folder(config: ConfigDict, path: str, name: str) -> Dataset:
    """Opens a folder of pictures of any size.

    Args:
      config: `data` says the size and channels that the pictures are converted to, as
        `data.pictures.to_square` does, and where they are kept.
      path: a folder as `config.data.path` names it: its sub-folders are classes.
      name: the flag or field that has the path, for errors.

    Raises:
      JcmError: if there is no such folder, or if pictures cannot be read.
    """
    section = config.data.copy_and_resolve_references()
    section.name, section.path = "image_folder", str(expanded(path))
    try:
        return data.load(section)
    except JcmError as error:
        text = str(error).replace("config.data.path", name)
        raise JcmError(text if name in text else f"{name}: {text}") from error


def samples(config: ConfigDict, path: str, name: str) -> Dataset:
    """Opens samples that another program made.

    Args:
      config: see `of_folder`.
      path: a folder, see `of_folder`; or an .npz file with pixels as `arr_0`, uint8 (n,
        h, w, c), and optionally labels as `arr_1`, as `jcm sample` and
        guided-diffusion write.
      name: see `of_folder`.

    Raises:
      JcmError: see `of_folder`. Pixels in a file must have the size of the config.
    """
    file = expanded(path)
    if file.suffix != ".npz":
        return of_folder(config, path, name)
    try:
        # The file is opened here, since numpy leaves a file open that it cannot read.
        with file.open("rb") as content, np.load(content, allow_pickle=False) as arrays:
            given = {key: arrays[key] for key in ("arr_0", "arr_1") if key in arrays}
        pixels = given["arr_0"]
    except UNREADABLE as error:
        raise JcmError(
            f"{name}={path} cannot be read ({one_line(error)}): name a folder, or an"
            " .npz file with pixels as arr_0"
        ) from error
    section = config.data
    try:
        return given_data.load(
            (pixels, given.get("arr_1")), section.image_size, section.channels
        )
    except JcmError as error:
        raise JcmError(f"{name}={path}: {error}") from error
