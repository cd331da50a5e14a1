"""The folder of a saved model: params.safetensors, config.json and README.md.

A tensor is named by its path in the tree of parameters, such as
down/res16_block0/conv0/kernel. config.json has the config, class names, training step
and facts for the model card. SHA256SUMS has the hashes of these files.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from jcm.model import card
from jcm.run.recorded_scores import Score
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


class _About(msgspec.Struct, forbid_unknown_fields=True):
    """The part of config.json that becomes a `card.About`."""

    trained: bool
    scores: tuple[Score, ...]
    software: str
    licence: str
    notes: str


class _Config(msgspec.Struct, forbid_unknown_fields=True):
    """The content of config.json."""

    format: int
    config: dict[str, Any]
    class_names: tuple[str, ...]
    step: json_files.Count | None
    about: _About


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


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[Exported]:
    """Reads what `write` wrote, and compares it with its hashes during the block.

    What the block makes of the content is only to be used if the block ends well.

    Raises:
      JcmError: if a file is missing, incomplete or of another format, or, at the end of
        the block, if a file is not as it was written.
    """
    path = pathlib.Path(path)
    remedy = f"copy {CONFIG} and {_PARAMS} again"
    try:
        versions.check_format(path / CONFIG, f"{path} was saved by", remedy)
    except FileNotFoundError as error:
        raise JcmError(
            f"{path} is not a complete model of jcm.save, since it has no {CONFIG}:"
            f" {remedy}"
        ) from error
    changed = (
        f"copy the folder again, or, if it was changed on purpose, run `sha256sum"
        f" {_CARD} {CONFIG} {_PARAMS} > {hashes.NAME}` in it"
    )
    with hashes.comparing(path / hashes.NAME, (CONFIG, _PARAMS), changed):
        found = json_files.read(path / CONFIG, _Config, remedy)
        about = msgspec.structs.asdict(found.about)
        yield Exported(
            params=files.read_tensors(path / _PARAMS),
            config=found.config,
            class_names=found.class_names,
            step=found.step,
            about=card.About(**about, trusted=False),
        )
