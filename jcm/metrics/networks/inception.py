"""InceptionV3 of 2015-12-05, the network of the FID.

This is the network of Szegedy et al. 2015 with the weights that TensorFlow published
for image recognition (1,008 outputs). It differs from later versions in its weights and
in three details: mean pooling does not count padding, the last block has max pooling,
and images are resized inside the graph.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jcm.metrics.networks import layers
from jcm.metrics.networks.layers import Images, Params, Weights

VERSION = 1
"""Version of the features.

Raise it when they change, so that cached statistics are computed again.
"""
IMAGE_SIZE = 299
"""Height and width that images are resized to."""
_EPSILON = 1e-3
_HALVE = {"stride": 2, "padding": "VALID"}
# The branches of each block that begin with a 1x1 convolution of its input. These
# convolutions are computed as one matrix product, which is faster than several.
_FIRST = {
    **dict.fromkeys(
        ("Mixed_5b", "Mixed_5c", "Mixed_5d"), ("1x1", "5x5_1", "3x3dbl_1", "_pool")
    ),
    "Mixed_6a": ("3x3dbl_1",),
    **dict.fromkeys(
        ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
        ("1x1", "7x7_1", "7x7dbl_1", "_pool"),
    ),
    "Mixed_7a": ("3x3_1", "7x7x3_1"),
    "Mixed_7b": ("1x1", "3x3_1", "3x3dbl_1", "_pool"),
    # Its fourth branch begins with max pooling.
    "Mixed_7c": ("1x1", "3x3_1", "3x3dbl_1"),
}


def params(weights: Weights) -> Params:
    """Converts the state dict of `pt_inception-2015-12-05`."""
    layers.take(weights, "Mixed_7c.branch1x1.conv.weight")
    found = layers.conv_params(weights, "fc")
    for name in weights:
        block, _, end = name.rpartition(".conv.weight")
        if block and not end:
            found |= layers.folded_params(
                weights, f"{block}.conv", f"{block}.bn", epsilon=_EPSILON, name=block
            )
    for block, branches in _FIRST.items():
        kernels = [found.pop(f"{block}.branch{name}.kernel") for name in branches]
        found[f"{block}.kernel"] = jnp.concatenate(kernels, axis=-1)[0, 0]
    return found


def resize(images: Images, size: int = IMAGE_SIZE) -> Images:
    """Resizes bilinearly as `resize_bilinear` of TensorFlow 1, without smoothing.

    Output pixel i takes the value at i * (input size / output size), where the centre
    of the first input pixel is at 0. Beyond the last pixel the image is constant.
    """
    for axis in (1, 2):
        length = images.shape[axis]
        place = np.arange(size, dtype=np.float32) * np.float32(length / size)
        low = np.minimum(np.floor(place).astype(np.int32), length - 1)
        high = np.minimum(low + 1, length - 1)
        shape = [1, 1, 1, 1]
        shape[axis] = size
        share = jnp.asarray((place - low).reshape(shape), images.dtype)
        a, b = jnp.take(images, low, axis), jnp.take(images, high, axis)
        images = a + (b - a) * share
    return images


def apply(p: Params, images: Images) -> dict[str, Float[Array, "b _d"]]:
    """Computes features of images.

    Args:
      p: parameters from `params`.
      images: images in [-1, 1] of any size, grey or colour.

    Returns:
      A dictionary of three features.
      pool: means of the last block, (b, 2048), for FID, KID, precision and recall.
      spatial: 7 channels of 17x17 in one axis, (b, 2023), for sFID.
      logits: logits without bias, (b, 1008), for the Inception Score.
    """
    x = layers.to_rgb(images) * 127.5 + 127.5
    return features(p, (resize(x) - 128) / 128)


def features(p: Params, x: Images) -> dict[str, Float[Array, "b _d"]]:
    """Computes features of images of 299x299, scaled as the network takes them."""
    x = _stem(p, x)
    for block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = _block_35(p, block, x)
    x = _reduction_17(p, x)
    firsts = {}
    for block in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x, firsts[block] = _block_17(p, block, x)
    x = _reduction_8(p, x)
    x = _block_8(p, "Mixed_7b", x)
    x = _block_8(p, "Mixed_7c", x)
    pool = jnp.mean(x, axis=(1, 2))
    spatial = firsts["Mixed_6d"][..., :7]  # The 7 channels that sFID takes.
    return {
        "pool": pool,
        "spatial": spatial.reshape(len(spatial), -1),
        "logits": pool @ p["fc.kernel"],
    }


def _stem(p: Params, x: Images) -> Images:
    x = _unit(p, "Conv2d_1a_3x3", x, stride=2, padding="VALID")
    x = _unit(p, "Conv2d_2a_3x3", x, padding="VALID")
    x = layers.max_pool(_unit(p, "Conv2d_2b_3x3", x), 3, 2)
    x = _unit(p, "Conv2d_4a_3x3", _unit(p, "Conv2d_3b_1x1", x), padding="VALID")
    return layers.max_pool(x, 3, 2)


def _block_35(p: Params, block: str, x: Images) -> Images:
    one, five, double, pooled = _begin(p, block, x)
    return _join(
        one,
        _chain(p, block, five, "5x5_2"),
        _chain(p, block, double, "3x3dbl_2", "3x3dbl_3"),
        pooled,
    )


def _reduction_17(p: Params, x: Images) -> Images:
    """Reduces 35x35 pixels to 17x17."""
    block = "Mixed_6a"
    (double,) = _begin(p, block, x)
    double = _chain(p, block, double, "3x3dbl_2")
    return _join(
        _unit(p, f"{block}.branch3x3", x, **_HALVE),
        _unit(p, f"{block}.branch3x3dbl_3", double, **_HALVE),
        layers.max_pool(x, 3, 2),
    )


def _block_17(p: Params, block: str, x: Images) -> tuple[Images, Images]:
    """Returns the output of the block and that of its first branch."""
    one, seven, double, pooled = _begin(p, block, x)
    x = _join(
        one,
        _chain(p, block, seven, "7x7_2", "7x7_3"),
        _chain(p, block, double, *(f"7x7dbl_{i}" for i in range(2, 6))),
        pooled,
    )
    return x, one


def _reduction_8(p: Params, x: Images) -> Images:
    """Reduces 17x17 pixels to 8x8."""
    block = "Mixed_7a"
    small, large = _begin(p, block, x)
    large = _chain(p, block, large, "7x7x3_2", "7x7x3_3")
    return _join(
        _unit(p, f"{block}.branch3x3_2", small, **_HALVE),
        _unit(p, f"{block}.branch7x7x3_4", large, **_HALVE),
        layers.max_pool(x, 3, 2),
    )


def _block_8(p: Params, block: str, x: Images) -> Images:
    one, wide, deep, *pooled = _begin(p, block, x)
    deep = _chain(p, block, deep, "3x3dbl_2")
    if not pooled:
        pooled = [_chain(p, block, layers.max_pool(x, 3, 1, "SAME"), "_pool")]
    return _join(
        one,
        *(_chain(p, block, wide, f"3x3_2{side}") for side in "ab"),
        *(_chain(p, block, deep, f"3x3dbl_3{side}") for side in "ab"),
        *pooled,
    )


def _begin(p: Params, block: str, x: Images) -> list[Images]:
    """Applies the 1x1 convolutions of a block's input, in the order of `_FIRST`.

    The branch with mean pooling is pooled after its convolution, where there are fewer
    channels; both are linear, so their order does not matter.
    """
    y, found, start = x @ p[f"{block}.kernel"], [], 0
    for name in _FIRST[block]:
        bias = p[f"{block}.branch{name}.bias"]
        part = y[..., start : start + len(bias)]
        part = layers.mean_pool_3x3(part) if name == "_pool" else part
        found.append(jax.nn.relu(part + bias))
        start += len(bias)
    return found


def _unit(p: Params, name: str, x: Images, **options: Any) -> Images:
    return jax.nn.relu(layers.conv(p, name, x, **options))


def _chain(p: Params, block: str, x: Images, *names: str) -> Images:
    """Applies the convolutions of one branch of a block, one after the other."""
    for name in names:
        x = _unit(p, f"{block}.branch{name}", x)
    return x


def _join(*branches: Images) -> Images:
    return jnp.concatenate(branches, axis=-1)
