"""Published networks that turn images into features, by name."""

import dataclasses
import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jcm import networks
from jcm.metrics import weights as weights_lib
from jcm.metrics.networks import dinov2, efficientnet, inception
from jcm.metrics.networks.layers import Images, Params
from jcm.runtime.errors import JcmError

NETWORKS = {
    "inception": inception,
    "dinov2": dinov2,
    "efficientnet_lite0": efficientnet,
}


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
    """A network ready for use.

    Attributes:
      name: a key of `NETWORKS`.
      params: its parameters.
      apply: from parameters and images in [-1, 1] to features by name, each (b, d).
    """

    name: str
    params: Params
    apply: Callable[[Params, Images], dict[str, Float[Array, "b _d"]]]

    @functools.cached_property
    def version(self) -> str:
        """Tells its features from those of other weights, or of older code."""
        digest = networks.fingerprint(self.params)
        return f"{self.name}{NETWORKS[self.name].VERSION}-{digest}"

    def sizes(self, image_shape: tuple[int, ...]) -> dict[str, int]:
        """How many numbers each feature has, of images of a shape (h, w, c)."""
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        found = jax.eval_shape(self.apply, self.params, image)
        return {name: feature.shape[1] for name, feature in found.items()}


def load(name: str, folder: str | os.PathLike = "") -> FeatureNetwork:
    """Reads the weights of a network.

    Args:
      name: inception, dinov2 or efficientnet_lite0.
      folder: where the file lies; see `weights.path`.

    Raises:
      JcmError: the file is missing, or not of this network.
    """
    module = NETWORKS[name]
    try:
        params = module.params(weights_lib.read(name, folder))
    except JcmError as error:
        raise JcmError(f"{name}: {error}") from error
    return FeatureNetwork(name, params, module.apply)
