"""The image classifiers whose feature maps LPIPS compares.

They are VGG16 (Simonyan and Zisserman 2015), AlexNet (Krizhevsky et al. 2012, in the
one-column variant of 2014) and SqueezeNet 1.1 (Iandola et al. 2016). Parameters keep
torchvision's names.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jcm.metrics.networks import layers
from jcm.metrics.networks.layers import Images, Params, Weights

FeatureMaps = Callable[[Params, Images], list[Images]]
"""A function of (parameters, images) that returns feature maps."""
# Convolutions of VGG16 by block; there is max pooling over 2x2 pixels between blocks.
_VGG16 = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
# Fire modules of SqueezeNet, grouped by the feature map that LPIPS takes after them.
_FIRES = ((3, 4), (6, 7), (9,), (10,), (11,), (12,))
# Fire modules that are preceded by max pooling.
_HALVED = (3, 6, 9)


def params(weights: Weights) -> Params:
    """Returns the parameters of the convolutions, without the dense layers."""
    layers.take(weights, "features.0.weight")
    found: Params = {}
    for name in weights:
        layer, _, end = name.rpartition(".weight")
        if layer.startswith("features.") and not end:
            found |= layers.conv_params(weights, layer)
    return found


def vgg16(p: Params, x: Images) -> list[Images]:
    """Returns the feature maps relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3."""
    maps: list[Images] = []
    for block in _VGG16:
        if maps:
            x = layers.max_pool(x, 2, 2)
        for index in block:
            x = _unit(p, f"features.{index}", x)
        maps.append(x)
    return maps


def alexnet(p: Params, x: Images) -> list[Images]:
    """Returns the feature maps after each of the five convolutions."""
    first = _unit(p, "features.0", x, stride=4, padding=2)
    second = _unit(p, "features.3", layers.max_pool(first, 3, 2))
    third = _unit(p, "features.6", layers.max_pool(second, 3, 2))
    fourth = _unit(p, "features.8", third)
    return [first, second, third, fourth, _unit(p, "features.10", fourth)]


def squeezenet(p: Params, x: Images) -> list[Images]:
    """Returns the feature map after the first convolution, and six of fire modules."""
    x = _unit(p, "features.0", x, stride=2, padding="VALID")
    maps = [x]
    for group in _FIRES:
        for index in group:
            if index in _HALVED:
                x = _pool_to_the_edge(x)
            name = f"features.{index}"
            x = _unit(p, f"{name}.squeeze", x)
            both = (_unit(p, f"{name}.expand{size}", x) for size in ("1x1", "3x3"))
            x = jnp.concatenate(list(both), axis=-1)
        maps.append(x)
    return maps


def _unit(p: Params, name: str, x: Images, **options: Any) -> Images:
    return jax.nn.relu(layers.conv(p, name, x, **options))


def _pool_to_the_edge(x: Images) -> Images:
    """Max-pools over 3x3 with stride 2; the last window may exceed the image."""
    excess = [(0, (size - 3) % 2) for size in x.shape[1:3]]
    return layers.max_pool(x, 3, 2, [(0, 0), *excess, (0, 0)])
