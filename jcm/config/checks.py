"""The checks that the values of a config must pass."""

import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jcm.config import files
from jcm.config.tree import fields, flatten, from_dict
from jcm.runtime.errors import JcmError


def check(config: ConfigDict) -> None:
    """Checks that the values of a config are in their bounds and fit together.

    Raises:
      JcmError: names the field and the values that it accepts.
    """
    values, known = flatten(config), fields(config)
    if other := values.keys() ^ known.keys():
        raise JcmError(
            f"config.method={config.method!r} does not fit config.{min(other)}, which"
            " belongs to another method: use a config file that was written for the"
            " method"
        )
    for name, field in known.items():
        field.check(f"config.{name}", values[name])
    if config.init.state and not config.init.model:
        raise JcmError(
            "config.init.state=True needs config.init.model: name the model to resume"
        )
    if config.eval.every_kimg > 0 and not config.eval.scores:
        raise JcmError(
            "config.eval.every_kimg needs config.eval.scores: name at least one, such"
            " as fd_efficientnet_lite0"
        )
    if len(set(config.eval.seeds)) < len(config.eval.seeds):
        raise JcmError(
            f"config.eval.seeds={config.eval.seeds} has a seed twice, which gives the"
            " same samples: name others"
        )
    _check_teacher(config)
    noise = config.noise
    if not noise.sigma_min < noise.sigma_max:
        raise JcmError(
            f"config.noise: sigma_min={noise.sigma_min} must be above 0 and below"
            f" sigma_max={noise.sigma_max}"
        )


def recorded(values: Mapping[str, Any], path: str | os.PathLike) -> ConfigDict:
    """Returns the config that a file records, with all its values checked.

    Args:
      values: what the file contains, as plain data; missing fields have their defaults.
      path: of the file, for the error.

    Raises:
      JcmError: names the file, the field, and the values that it accepts.
    """
    try:
        config = from_dict(values)
        check(config)
    except JcmError as error:
        raise JcmError(
            f"{path} is damaged or of another version of jcm: {error}"
        ) from error
    return config


def _check_teacher(config: ConfigDict) -> None:
    """Checks that `config.teacher_train` is of use.

    Raises:
      JcmError: if it has a value, and no teacher is trained.
    """
    given = [
        f"config.teacher_train.{name}={value}"
        for name, value in config.get("teacher_train", {}).items()
        if value is not None
    ]
    if given and not any(map(files.is_file, config.teachers.values())):
        raise JcmError(
            f"{given[0]} changes the training of a teacher that is trained first, and"
            " config.teachers names no config file: set it to None"
        )


def uses_num_steps(config: ConfigDict) -> bool:
    """Returns whether each step depends on the length of the whole run."""
    from jcm import methods

    recipe = methods.recipe(config.method)
    return config.optim.schedule == "linear" or recipe.uses_num_steps(config)
