"""The methods, by the name a config gives them."""

from typing import Any

from jcm.errors import JcmError
from jcm.losses import consistency, edm
from jcm.losses.method import Batch, Frozen, Method
from jcm.models import Network

__all__ = ["Batch", "Frozen", "Method", "create"]

# Each entry makes a method of (config, network).
_METHODS = {
    "edm": edm.from_config,
    "cd": consistency.distillation_from_config,
    "ct": consistency.training_from_config,
}


def create(config: Any, network: Network) -> Method:
    """The method that `config.method` names.

    Args:
      config: the whole config.
      network: F.

    Raises:
      JcmError: for an unknown name or settings that the method refuses.
    """
    if config.method not in _METHODS:
        raise JcmError(
            f"config.method={config.method!r} is unknown: use one of "
            f"{', '.join(_METHODS)}"
        )
    return _METHODS[config.method](config, network)
