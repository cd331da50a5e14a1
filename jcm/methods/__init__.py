"""Training methods, by their names in a config."""

from collections.abc import Mapping
from typing import Any

from jcm.diffusion.denoiser import Denoiser
from jcm.methods import consistency, edm
from jcm.methods.method import Batch as Batch
from jcm.methods.method import Frozen as Frozen
from jcm.methods.method import Log as Log
from jcm.methods.method import Losses as Losses
from jcm.methods.method import Method as Method
from jcm.methods.method import Recipe as Recipe
from jcm.networks import Network
from jcm.runtime.errors import JcmError

_RECIPES = {
    "edm": edm.RECIPE,
    "cd": consistency.DISTILLATION,
    "ct": consistency.TRAINING,
}
NAMES = tuple(_RECIPES)
"""The names that `config.method` can have."""


def recipe(name: str) -> Recipe:
    """Returns the recipe of a method.

    Raises:
      JcmError: if the name is unknown.
    """
    if name not in _RECIPES:
        raise JcmError(
            f"config.method={name!r} is unknown: use one of {', '.join(NAMES)}"
        )
    return _RECIPES[name]


def create(config: Any, network: Network, teachers: Mapping[str, Denoiser]) -> Method:
    """Returns the method that `config.method` names.

    Args:
      config: the whole config.
      network: F.
      teachers: the denoiser of each teacher that the recipe names.

    Raises:
      JcmError: if the name is unknown, or if the method cannot use the settings.
    """
    return recipe(config.method).create(config, network, teachers)


def denoiser(config: Any, network: Network) -> Denoiser:
    """Returns the denoiser that the method trains; sampling needs no more of it.

    Args:
      config: the whole config.
      network: F.

    Raises:
      JcmError: if the name is unknown.
    """
    return recipe(config.method).denoiser(config, network)
