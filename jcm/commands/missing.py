"""What to name if a command line names no config, and no run that records one."""

import argparse
import pathlib
from typing import Any

import msgspec

from jcm import config as config_lib
from jcm.runtime import json_files
from jcm.runtime.errors import JcmError
from jcm.runtime.paths import expanded, nearest_path

# Commands that use a model, which `config.sample.model` can also name.
_USES_MODEL = ("sample", "edit", "evaluate", "search", "benchmark latency")
_ANY = "--config=configs/digits_cd.py"


class _Saved(msgspec.Struct):
    """What is used of the config.json of a saved model."""

    config: dict[str, Any]


def error(arguments: argparse.Namespace) -> JcmError:
    """Returns the error for a command that needs a config and has none.

    Args:
      arguments: what `cli.parse` has read so far.
    """
    workdir = getattr(arguments, "workdir", None)
    uses_model = arguments.command in _USES_MODEL
    if uses_model and not workdir and "sample.model" in arguments.given:
        return JcmError(
            "config.sample.model needs a config with images of the same size: name it"
            f" too, such as {_ANY}"
        )
    if uses_model:
        remedy = (
            "name a run by --workdir=DIR, or a model by --config=FILE"
            " --config.sample.model=MODEL"
        )
    else:
        remedy = f"name a config, such as {_ANY}"
    if not workdir:
        return JcmError(remedy)
    folder = expanded(workdir)
    if uses_model and (folder / "params.safetensors").is_file():
        return JcmError(
            f"{workdir} is a saved model and not the workdir of a run: use"
            f" --config={_config_of(folder)} --config.sample.model={workdir} instead of"
            " --workdir"
        )
    near = nearest_path(folder, "run.json")
    if near:
        remedy = f"did you mean --workdir={near}?"
    return JcmError(f"{workdir} is not the workdir of a run: {remedy}")


def _config_of(folder: pathlib.Path) -> str:
    """Returns the config that a saved model was probably trained with."""
    try:
        path = folder / "config.json"
        config = config_lib.recorded(json_files.read(path, _Saved, "").config, path)
    except (OSError, JcmError):
        return "FILE"
    name = f"{config.data.name}_{config.method}.py"
    known = [path.name for path in config_lib.shipped()]
    return f"configs/{name}" if name in known else "FILE"
