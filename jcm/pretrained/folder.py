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

import jax
import numpy as np

from jcm import files
from jcm.errors import JcmError
from jcm.models import Params

_PARAMS, _CONFIG, _CARD = "params.safetensors", "config.json", "README.md"
_FORMAT = "jcm"


@dataclasses.dataclass(frozen=True)
class Exported:
    """What a folder holds.

    Attributes:
      params: of the network, as nested dictionaries of float32 arrays.
      config: of the run that made them, or what describes them, as plain data.
      class_names: what the labels 0, 1, ... mean.
      step: how many training steps made them; None where nothing tells.
      notes: where they come from, in Markdown.
    """

    params: Params
    config: dict[str, Any]
    class_names: tuple[str, ...]
    step: int | None
    notes: str


def is_exported(path: str | os.PathLike) -> bool:
    """Whether a folder looks like one."""
    return (pathlib.Path(path) / _PARAMS).is_file()


def write(path: str | os.PathLike, model: Exported, card: str) -> None:
    """Writes a model, the parameters bit for bit.

    Args:
      path: of the folder; made where it is missing.
      model: what is written.
      card: text for people, in Markdown.

    Raises:
      JcmError: where the folder has files already, or cannot be written.
    """
    path = files.new_folder(path)
    about = {
        "format": _FORMAT,
        "config": model.config,
        "class_names": list(model.class_names),
        "step": model.step,
        "notes": model.notes,
    }
    flat = {
        jax.tree_util.keystr(key, simple=True, separator="/"): np.asarray(leaf)
        for key, leaf in jax.tree_util.tree_leaves_with_path(model.params)
    }
    files.write_text(path / _CARD, card)
    files.write_json(path / _CONFIG, about)
    # The last, by which the folder is known.
    files.write_tensors(path / _PARAMS, flat, {"format": _FORMAT})


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
        flat = files.read_tensors(path / _PARAMS)
        return Exported(
            params=_nested(flat),
            config=about["config"],
            class_names=tuple(about["class_names"]),
            step=about["step"],
            notes=about["notes"],
        )
    except (OSError, ValueError, KeyError, TypeError, JcmError) as error:
        reason = " ".join(str(error).split())
        raise JcmError(
            f"{path} is not a whole model written by jcm.save ({reason}): copy"
            f" {_CONFIG} and {_PARAMS} again"
        ) from error


def _nested(flat: Mapping[str, np.ndarray]) -> Params:
    tree: Params = {}
    for name, array in flat.items():
        *folders, leaf = name.split("/")
        branch = tree
        for folder in folders:
            branch = branch.setdefault(folder, {})
        branch[leaf] = array
    return tree
