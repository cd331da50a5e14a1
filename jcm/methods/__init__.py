"""Training methods, by their names in a config."""

from typing import Any

from jcm.diffusion.denoiser import Denoiser
from jcm.methods import consistency, edm
from jcm.methods.method import Batch, Frozen, Method
from jcm.networks import Network
from jcm.runtime.errors import JcmError

__all__ = ["Batch", "Frozen", "Method", "create", "denoiser"]

# For each name two functions of (config, network): one returns the method, the other
# the denoiser that it trains.
_METHODS = {
    "edm": (edm.from_config, edm.denoiser_from_config),
    "cd": (consistency.distillation_from_config, consistency.denoiser_from_config),
    "ct": (consistency.training_from_config, consistency.denoiser_from_config),
}


def create(config: Any, network: Network) -> Method:
    """Returns the method that `config.method` names.

    Args:
      config: the whole config.
      network: F.

    Raises:
      JcmError: if the name is unknown, or if the method cannot use the settings.
    """
    make, _ = _named(config.method)
    return make(config, network)


def denoiser(config: Any, network: Network) -> Denoiser:
    """Returns the denoiser that the method trains; sampling needs no more of it.

    Args:
      config: the whole config.
      network: F.

    Raises:
      JcmError: if the name is unknown.
    """
    _, make = _named(config.method)
    return make(config, network)


def _named(name: str) -> Any:
    """Returns the entry of a name.

    Raises:
      JcmError: if the name is unknown.
    """
    if name not in _METHODS:
        raise JcmError(
            f"config.method={name!r} is unknown: use one of {', '.join(_METHODS)}"
        )
    return _METHODS[name]
