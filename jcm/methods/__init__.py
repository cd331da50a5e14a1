"""The methods, by the name a config gives them."""

from typing import Any

from jcm.diffusion.denoiser import Denoiser
from jcm.methods import consistency, edm
from jcm.methods.method import Batch, Frozen, Method
from jcm.networks import Network
from jcm.runtime.errors import JcmError

__all__ = ["Batch", "Frozen", "Method", "create", "denoiser"]

# For each name, what makes the method and what makes the function it trains, both
# of (config, network).
_METHODS = {
    "edm": (edm.from_config, edm.denoiser_from_config),
    "cd": (consistency.distillation_from_config, consistency.denoiser_from_config),
    "ct": (consistency.training_from_config, consistency.denoiser_from_config),
}


def create(config: Any, network: Network) -> Method:
    """The method that `config.method` names.

    Args:
      config: the whole config.
      network: F.

    Raises:
      JcmError: for an unknown name or settings that the method refuses.
    """
    make, _ = _named(config.method)
    return make(config, network)


def denoiser(config: Any, network: Network) -> Denoiser:
    """The function that the method trains: all that sampling needs.

    Args:
      config: the whole config.
      network: F.

    Raises:
      JcmError: for an unknown name.
    """
    _, make = _named(config.method)
    return make(config, network)


def _named(name: str) -> Any:
    if name not in _METHODS:
        raise JcmError(
            f"config.method={name!r} is unknown: use one of {', '.join(_METHODS)}"
        )
    return _METHODS[name]
