"""Published networks that compute features of images, by name."""

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
from jcm.runtime.errors import JcmError, one_line

NETWORKS = {
    "inception": inception,
    "dinov2": dinov2,
    "efficientnet_lite0": efficientnet,
}
"""The networks that compute features for scores, by name."""


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
    """A network with its parameters.

    Attributes:
      name: a key of `NETWORKS`.
      params: the parameters.
      apply: from parameters and images in [-1, 1] to features by name, each (b, d).
    """

    name: str
    params: Params
    apply: Callable[[Params, Images], dict[str, Float[Array, "b _d"]]]

    @functools.cached_property
    def version(self) -> str:
        """A name that changes with the weights and with the code of the network."""
        digest = networks.fingerprint(self.params)
        return f"{self.name}{NETWORKS[self.name].VERSION}-{digest}"

    def sizes(self, image_shape: tuple[int, ...]) -> dict[str, int]:
        """Returns the length d of each feature, for images of shape (h, w, c)."""
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        features = jax.eval_shape(self.apply, self.params, image)
        return {name: feature.shape[1] for name, feature in features.items()}


def load(name: str, folder: str | os.PathLike = "") -> FeatureNetwork:
    """Reads the weights of a network.

    Args:
      name: inception, dinov2 or efficientnet_lite0.
      folder: the folder with the weights; see `weights.path`.

    Raises:
      JcmError: if the file is missing or belongs to another network.
    """
    module = NETWORKS[name]
    try:
        params = module.params(weights_lib.read(name, folder))
    except JcmError as error:
        raise JcmError(f"{name}: {error}") from error
    except Exception as error:  # arrays of a file without a hash may have any shape
        raise JcmError(
            f"{name}: the weights do not fit ({one_line(error, 200)}): use the file of"
            " the right network"
        ) from error
    return FeatureNetwork(name, params, module.apply)
