"""A model as a folder that can be shared: params.safetensors, config.json, README.md.

The tensors are named by their path in our tree, such as down/res16_block0/conv0/kernel;
config.json has the resolved config and what else makes a model of them.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jcm.model import card
from jcm.runtime import files
from jcm.runtime.errors import JcmError, one_line

_PARAMS, _CONFIG, _CARD = "params.safetensors", "config.json", "README.md"
_FORMAT = "jcm"


@dataclasses.dataclass(frozen=True)
class Exported:
    """What a folder holds.

    Attributes:
      params: of the network: float32 arrays by their path.
      config: as plain data; of the fields that count.
      class_names: what the labels 0, 1, ... mean.
      step: how many training steps made them; None where nothing tells.
      about: what else is known of them.
    """

    params: Mapping[str, np.ndarray]
    config: dict[str, Any]
    class_names: tuple[str, ...]
    step: int | None
    about: card.About


def is_exported(path: str | os.PathLike) -> bool:
    """Whether a folder looks like one."""
    return (pathlib.Path(path) / _PARAMS).is_file()


def write(path: str | os.PathLike, model: Exported, text: str) -> None:
    """Writes a model, the parameters bit for bit.

    Args:
      path: of the folder; made where it is missing.
      model: what is written.
      text: the model card, in Markdown.

    Raises:
      JcmError: where the folder has files already, or cannot be written.
    """
    path = files.new_folder(path)
    about = {
        "format": _FORMAT,
        "config": model.config,
        "class_names": list(model.class_names),
        "step": model.step,
        "about": dataclasses.asdict(model.about),
    }
    files.write_text(path / _CARD, text)
    files.write_json(path / _CONFIG, about)
    # The last, by which the folder is known.
    files.write_tensors(path / _PARAMS, model.params, {"format": _FORMAT})


def read(path: str | os.PathLike) -> Exported:
    """Reads what `write` wrote.

    Raises:
      JcmError: for a file that is missing, cut short or of something else.
    """
    path = pathlib.Path(path)
    try:
        about = json.loads((path / _CONFIG).read_text(encoding="utf-8"))
        if about["format"] != _FORMAT:
            raise ValueError(f"format {about['format']!r}")
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
    except Exception as error:  # what anybody wrote can be wrong in any way
        reason = one_line(error)
        raise JcmError(
            f"{path} is not a whole model written by jcm.save ({reason}): copy"
            f" {_CONFIG} and {_PARAMS} again"
        ) from error
