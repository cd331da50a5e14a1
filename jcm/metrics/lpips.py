"""Perceptual distances: LPIPS, and its like on the network that is always there.

Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual
Metric", version 0.1 of the weights.
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

# Mean and deviation of ImageNet's pixels in [0, 1].
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)
_NETWORKS = {
    "lpips": ("vgg16", "lpips_vgg", classifiers.vgg16),
    "lpips_alex": ("alexnet", "lpips_alex", classifiers.alexnet),
    "lpips_squeeze": ("squeezenet1_1", "lpips_squeeze", classifiers.squeezenet),
}
NAMES = (*_NETWORKS, "efficientnet_lite0")


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity
class Perceptual:
    """A distance of two images by the maps of a network.

    Attributes:
      params: of the network and of the heads.
      maps: from parameters and images in [-1, 1] to maps.
      size: height and width that smaller images are enlarged to; 0: none are.
      dtype: of the network's computation; the distance itself is float32.
    """

    params: Params
    maps: Callable[[Params, Images], list[Images]]
    size: int
    dtype: str

    def __call__(self, params: Params, a: Images, b: Images) -> Float[Array, " b"]:
        """Distance of each pair; 0 for equal images.

        Args:
          params: `self.params`, handed in so that they need not be compiled in.
          a: images in [-1, 1], grey or colour; values beyond are not clipped.
          b: as many.
        """
        # Each by itself: of a constant no gradient is computed then.
        pairs = zip(self._maps(params, a), self._maps(params, b), strict=True)
        total = jnp.zeros(len(a))
        for index, (first, second) in enumerate(pairs):
            head = params.get(f"head{index}", jnp.ones(()))
            difference = jnp.sum(head * (first - second) ** 2, axis=-1)
            total += jnp.mean(difference, axis=(1, 2))
        return total

    def _maps(self, params: Params, x: Images) -> list[Images]:
        """Every pixel of every map as a vector of length 1."""
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
    """Each pixel's channels as a vector of length 1; zeros stay zeros."""
    # The small number keeps the root's gradient finite where all channels are 0.
    length = jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-20)
    # On GPUs XLA would join sum and division, and write the float32 maps they give.
    return x / jax.lax.optimization_barrier(length + 1e-10)


@functools.lru_cache(maxsize=1)  # a config is looked at twice before training
def load(
    name: str,
    *,
    size: int = 224,
    dtype: str = "float32",
    folder: str | os.PathLike = "",
) -> Perceptual:
    """Reads the weights of a distance.

    Args:
      name: lpips (VGG16), lpips_alex, lpips_squeeze, or efficientnet_lite0: the sum
        over the maps of its seven stages, without trained heads.
      size: height and width that smaller images are enlarged to, bilinearly; 224 as
        in the original code, which leaves 256 as it is. 0 enlarges none.
      dtype: float32 or bfloat16, of the network's computation.
      folder: where the files lie; see `weights.path`.

    Raises:
      JcmError: for a file that is missing, or not of this network; for a negative
        size, or another dtype.
    """
    if size < 0:
        raise JcmError(f"config.loss.metric_size={size} must be at least 0")
    if dtype not in ("float32", "bfloat16"):
        raise JcmError(f"config.loss.metric_dtype={dtype!r}: use float32 or bfloat16")
    if name == "efficientnet_lite0":
        params = efficientnet.params(weights_lib.read(name, folder))
        return Perceptual(params, efficientnet.stages, size, dtype)
    network, heads, taps = _NETWORKS[name]
    params = classifiers.params(weights_lib.read(network, folder))
    for key, head in weights_lib.read(heads, folder).items():
        index = key.removeprefix("lin").partition(".")[0]
        params[f"head{index}"] = jnp.asarray(head.reshape(-1), jnp.float32)
    return Perceptual(params, on_imagenet_pixels(taps), size, dtype)


def on_imagenet_pixels(taps: classifiers.Taps) -> classifiers.Taps:
    """The same maps of images in [-1, 1], normalised as torchvision's networks ask."""

    def maps(params: Params, x: Images) -> list[Images]:
        mean, deviation = (jnp.array(v, x.dtype) for v in (_MEAN, _DEVIATION))
        return taps(params, (x / 2 + 0.5 - mean) / deviation)

    return maps
