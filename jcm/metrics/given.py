"""Pictures that a user names, to score or to compare with, as data sets."""

from ml_collections import ConfigDict

from jcm import data
from jcm.data import Dataset
from jcm.data import given as given_data
from jcm.runtime import npz
from jcm.runtime.errors import JcmError
from jcm.runtime.paths import expanded

# The arrays of samples in a file; see `samples`.
_SAMPLES = {
    "arr_0": npz.Array(("uint8",), ("n", "h", "w", "c")),
    "arr_1": npz.Array(npz.WHOLE, ("n",), optional=True),
}


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
    section, remedy = config.data, "name a folder, or an .npz with pixels as arr_0"
    try:
        given = npz.read(file, _SAMPLES, remedy)
        return given_data.load(
            (given["arr_0"], given.get("arr_1")), section.image_size, section.channels
        )
    except JcmError as error:
        raise JcmError(f"{name}={path}: {error}") from error
