"""Perceptual distances: LPIPS, and a similar distance that needs no download.

LPIPS is from Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a
Perceptual Metric", with version 0.1 of the weights. The other distance uses
EfficientNet-Lite0, whose weights are part of the installation.
"""

import dataclasses
import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jcm.metrics import weights as weights_lib
from jcm.metrics.networks import classifiers, efficientnet, layers
from jcm.metrics.networks.layers import Images, Params
from jcm.runtime.errors import JcmError

_NETWORKS = {
    "lpips": ("vgg16", "lpips_vgg", classifiers.vgg16),
    "lpips_alex": ("alexnet", "lpips_alex", classifiers.alexnet),
    "lpips_squeeze": ("squeezenet1_1", "lpips_squeeze", classifiers.squeezenet),
}
NAMES = (*_NETWORKS, "efficientnet_lite0")
"""The perceptual distances that `config.loss.metric` can name."""


@dataclasses.dataclass(frozen=True, eq=False)  # Distances are hashed by identity.
class Perceptual:
    """A distance between two images, computed from the feature maps of a network.

    Attributes:
      params: parameters of the network and of the heads.
      maps: from parameters and images in [-1, 1] to feature maps.
      size: height and width to which smaller images are enlarged; 0 enlarges none.
      dtype: dtype of the network's computation; the distance itself is float32.
    """

    params: Params
    maps: Callable[[Params, Images], list[Images]]
    size: int
    dtype: str

    def __call__(self, params: Params, a: Images, b: Images) -> Float[Array, " b"]:
        """Returns the distance of each pair of images; it is 0 for equal images.

        Args:
          params: `self.params`, passed as an argument so that they do not become
            constants of a compiled program.
          a: images in [-1, 1], grey or colour; values outside are not clipped.
          b: images to compare them with, in the same number.

        Raises:
          JcmError: if the images are too small for the network, or are not floats.
        """
        # Two passes, so that no gradient is computed for a side that is constant.
        pairs = zip(self._maps(params, a), self._maps(params, b), strict=True)
        total = jnp.zeros(len(a))
        for index, (first, second) in enumerate(pairs):
            head = params.get(f"head{index}", jnp.ones(()))
            difference = jnp.sum(head * (first - second) ** 2, axis=-1)
            total += jnp.mean(difference, axis=(1, 2))
        return total

    def _maps(self, params: Params, x: Images) -> list[Images]:
        """Returns the feature maps, with unit-length channels at each pixel."""
        x = layers.to_rgb(x)
        if x.shape[1] < self.size:
            shape = (len(x), self.size, self.size, 3)
            x = jax.image.resize(x, shape, "bilinear")
        maps = self.maps(params, x.astype(self.dtype))
        if not all(each.size for each in maps):
            raise JcmError(
                f"images of {x.shape[1]}x{x.shape[2]} are too small for the network of"
                " config.loss.metric: set config.loss.metric_size=64"
            )
        return [_unit_length(each.astype(jnp.float32)) for each in maps]


def _unit_length(x: Images) -> Images:
    """Scales the channels at each pixel to unit length; zeros stay zeros."""
    # The small constant keeps the gradient of the root finite where all channels are 0.
    length = jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-20)
    # Without the barrier XLA for GPUs fuses sum and division, and writes float32 maps.
    return x / jax.lax.optimization_barrier(length + 1e-10)


@functools.lru_cache(maxsize=1)  # Two places load the same distance before training.
def load(
    name: str,
    *,
    size: int = 224,
    dtype: str = "float32",
    folder: str | os.PathLike = "",
) -> Perceptual:
    """Creates a distance and reads its weights.

    Args:
      name: lpips (VGG16), lpips_alex, lpips_squeeze, or efficientnet_lite0, which sums
        over the maps of the network's seven stages without trained heads.
      size: height and width to which smaller images are enlarged bilinearly. The
        original code uses 224, which leaves images of 256 unchanged; 0 enlarges none.
      dtype: float32 or bfloat16, the dtype of the network's computation.
      folder: the folder with the weights; see `weights.path`.

    Raises:
      JcmError: if a file is missing or belongs to another network, the size is
        negative, or the dtype is unknown.
    """
    if size < 0:
        raise JcmError(f"config.loss.metric_size={size}: use 0 or more")
    if dtype not in ("float32", "bfloat16"):
        raise JcmError(f"config.loss.metric_dtype={dtype!r}: use float32 or bfloat16")
    if name == "efficientnet_lite0":
        params = efficientnet.params(weights_lib.read(name, folder))
        return Perceptual(params, efficientnet.stages, size, dtype)
    network, heads, feature_maps = _NETWORKS[name]
    params = classifiers.params(weights_lib.read(network, folder))
    for key, head in weights_lib.read(heads, folder).items():
        index = key.removeprefix("lin").partition(".")[0]
        params[f"head{index}"] = jnp.asarray(head.reshape(-1), jnp.float32)
    return Perceptual(params, on_imagenet_pixels(feature_maps), size, dtype)


def on_imagenet_pixels(
    feature_maps: classifiers.FeatureMaps,
) -> classifiers.FeatureMaps:
    """Wraps a network of torchvision so that it takes images in [-1, 1]."""

    def maps(params: Params, x: Images) -> list[Images]:
        mean, deviation = (
            jnp.array(v, x.dtype)
            for v in (layers.IMAGENET_MEAN, layers.IMAGENET_DEVIATION)
        )
        return feature_maps(params, (x / 2 + 0.5 - mean) / deviation)

    return maps
