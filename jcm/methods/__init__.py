"""Training methods, by their names in a config.

    from jcm import methods

    cd = methods.consistency.Consistency(f, D, grid, scales, distance)
    losses = cd.loss(params, None, frozen, batch, step)

A `Method` has a loss, a pure function of parameters, a `Batch` of images with keys, and
`Frozen` parameters; it returns `Losses`. Each method is a module: `edm` (diffusion
models) and `consistency` (CD and CT). `distances` has the distances between images that
losses use. A `Recipe` says how a config makes a method; `NAMES` are those of
`config.method`, and `create` and `denoiser` make what a config names.
"""

from collections.abc import Mapping
from typing import Any

from jcm.diffusion.denoiser import Denoiser
from jcm.methods import consistency as consistency
from jcm.methods import distances as distances
from jcm.methods import edm as edm
from jcm.methods.method import Batch as Batch
from jcm.methods.method import Frozen as Frozen
from jcm.methods.method import Log as Log
from jcm.methods.method import Losses as Losses
from jcm.methods.method import Method as Method
from jcm.methods.method import Plain as Plain
from jcm.methods.method import Recipe as Recipe
from jcm.networks import Network
from jcm.runtime.errors import JcmError
from jcm.runtime.fields import Field as Field

__all__ = [
    "NAMES",
    "Batch",
    "Field",
    "Frozen",
    "Log",
    "Losses",
    "Method",
    "Plain",
    "Recipe",
    "consistency",
    "create",
    "denoiser",
    "distances",
    "edm",
    "recipe",
]

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
    found = recipe(config.method)
    arch = network.arch
    for name, unused in (("times", 1), ("augment_dim", 0), ("guidance", False)):
        if getattr(arch, name) != unused and name not in found.conditions:
            raise JcmError(
                f"config.model.{name}={getattr(arch, name)} is of no use with"
                f" config.method={config.method!r}: set it to {unused}"
            )
    return found.create(config, network, teachers)


def denoiser(config: Any, network: Network) -> Denoiser:
    """Returns the denoiser that the method trains; sampling needs no more of it.

    Args:
      config: the whole config.
      network: F.

    Raises:
      JcmError: if the name is unknown.
    """
    return recipe(config.method).denoiser(config, network)
