"""The folder of a saved model: params.safetensors, config.json and README.md.

A tensor is named by its path in the tree of parameters, such as
down/res16_block0/conv0/kernel. config.json has the config, class names, training step
and facts for the model card.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jcm.model import card
from jcm.runtime import files, versions
from jcm.runtime.errors import JcmError, one_line

_PARAMS, _CONFIG, _CARD = "params.safetensors", "config.json", "README.md"
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
    about = {
        "format": _FORMAT,
        "version": versions.FORMAT,
        "config": model.config,
        "class_names": list(model.class_names),
        "step": model.step,
        "about": dataclasses.asdict(model.about),
    }
    files.write_text(path / _CARD, text)
    files.write_json(path / _CONFIG, about)
    # Written last, since `is_exported` looks for it.
    files.write_tensors(path / _PARAMS, model.params, {"format": _FORMAT})


def read(path: str | os.PathLike) -> Exported:
    """Reads what `write` wrote.

    Raises:
      JcmError: if a file is missing, incomplete or of another format.
    """
    path = pathlib.Path(path)
    try:
        about = json.loads((path / _CONFIG).read_text(encoding="utf-8"))
        if about["format"] != _FORMAT:
            raise ValueError(f"format {about['format']!r}")
        if about.get("version") != versions.FORMAT:
            raise versions.OtherVersion(f"{path} was saved by", about.get("version"))
        step, names = about["step"], about["class_names"]
        if not (step is None or type(step) is int) or not isinstance(names, list):
            raise ValueError(f"step {step!r}")
        known = about["about"]
        return Exported(
            params=files.read_tensors(path / _PARAMS),
            config=about["config"],
            class_names=tuple(map(str, names)),
            step=step,
            about=card.About(**known | {"scores": tuple(known["scores"])}),
        )
    except versions.OtherVersion:
        raise
    except Exception as error:  # the files may hold anything
        reason = one_line(error)
        raise JcmError(
            f"{path} is not a complete model of jcm.save ({reason}): copy"
            f" {_CONFIG} and {_PARAMS} again"
        ) from error
