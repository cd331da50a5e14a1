"""The folder of a saved model: params.safetensors, config.json and README.md.

A tensor is named by its path in the tree of parameters, such as
down/res16_block0/conv0/kernel. config.json has the config, class names, training step
and facts for the model card. SHA256SUMS has the hashes of these files.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from jcm.model import card
from jcm.runtime import files, hashes, json_files, versions
from jcm.runtime.errors import JcmError

CONFIG = "config.json"
_PARAMS, _CARD = "params.safetensors", "README.md"
_FORMAT = "jcm"


@dataclasses.dataclass(frozen=True)
class Exported:
    """The content of a folder.

    Attributes:
      params: float32 arrays by their path.
      config: fields of the config as plain data.
      class_names: names of the classes 0, 1, ...
      step: number of training steps that made the weights; None if unknown.
      about: facts for the model card.
    """

    params: Mapping[str, np.ndarray]
    config: dict[str, Any]
    class_names: tuple[str, ...]
    step: int | None
    about: card.About


def is_exported(path: str | os.PathLike) -> bool:
    """Returns whether `jcm.save` wrote a folder, by the name of its file."""
    return (pathlib.Path(path) / _PARAMS).is_file()


class _Config(msgspec.Struct, forbid_unknown_fields=True):
    """The content of config.json."""

    format: int
    config: dict[str, Any]
    class_names: tuple[str, ...]
    step: json_files.Count | None
    about: card.About


def write(path: str | os.PathLike, model: Exported, text: str) -> None:
    """Writes a model; the parameters keep their values to the bit.

    Args:
      path: the folder, which is created if it is missing.
      model: what is written.
      text: the model card in Markdown.

    Raises:
      JcmError: if the folder has files, or if it cannot be written.
    """
    path = files.new_folder(path)
    about = dataclasses.asdict(model.about)
    del about["trusted"]
    content = {
        "format": versions.FORMAT,
        "config": model.config,
        "class_names": list(model.class_names),
        "step": model.step,
        "about": about,
    }
    files.write_text(path / _CARD, text)
    files.write_json(path / CONFIG, content)
    files.write_tensors(path / _PARAMS, model.params, {"format": _FORMAT})
    hashes.write_folder(path)


def comparing(path: str | os.PathLike) -> contextlib.AbstractContextManager[None]:
    """Returns a context that compares the files with their hashes while it reads them.

    Raises:
      JcmError: at the end of the block, if a file has changed since it was written.
    """
    record = pathlib.Path(path) / hashes.NAME
    remedy = (
        f"copy the folder again, or save the model again; after a change on purpose,"
        f" write the new hashes by `sha256sum {_CARD} {CONFIG} {_PARAMS} >"
        f" {hashes.NAME}` in the folder"
    )
    return hashes.comparing(record, (CONFIG, _PARAMS), remedy)


def read(path: str | os.PathLike) -> Exported:
    """Reads what `write` wrote; see also `comparing`.

    Raises:
      JcmError: if a file is missing, incomplete or of another format.
    """
    path = pathlib.Path(path)
    remedy = f"copy {CONFIG} and {_PARAMS} again"
    try:
        versions.check_format(path / CONFIG, f"{path} was saved by", remedy)
        found = json_files.read(path / CONFIG, _Config, remedy)
    except FileNotFoundError as error:
        raise JcmError(
            f"{path} is not a complete model of jcm.save, since it has no {CONFIG}:"
            f" {remedy}"
        ) from error
    return Exported(
        params=files.read_tensors(path / _PARAMS),
        config=found.config,
        class_names=found.class_names,
        step=found.step,
        about=dataclasses.replace(found.about, trusted=False),
    )
