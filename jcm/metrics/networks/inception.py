"""InceptionV3 of 2015-12-05, the network of the FID.

Szegedy et al. 2015 with the weights that TensorFlow published for image recognition
(1,008 outputs). They differ from later ones, and so do three details: means that count
no padding, a maximum in the last block, and images resized inside of the graph.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jcm.metrics.networks import layers
from jcm.metrics.networks.layers import Images, Params, Weights

# To be raised when the same image gives other features: old statistics are then void.
VERSION = 1
IMAGE_SIZE = 299
_EPSILON = 1e-3


def params(weights: Weights) -> Params:
    """Parameters from the state dict of `pt_inception-2015-12-05`."""
    layers.take(weights, "Mixed_7c.branch1x1.conv.weight")
    found = layers.conv_params(weights, "fc")
    for name in weights:
        block, _, end = name.rpartition(".conv.weight")
        if block and not end:
            found |= layers.folded_params(
                weights, f"{block}.conv", f"{block}.bn", epsilon=_EPSILON, name=block
            )
    return found


def resize(images: Images, size: int = IMAGE_SIZE) -> Images:
    """Bilinear as `resize_bilinear` of TensorFlow 1: corners first, no smoothing.

    Output pixel i takes its value at i * (input size / output size), counted from the
    first pixel's centre; beyond the last pixel its value holds.
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
    """Features of images.

    Args:
      p: from `params`.
      images: in [-1, 1], of any size, grey or colour.

    Returns:
      pool: 2,048 means of the last block (FID, KID, precision and recall).
      spatial: 7 channels of 17x17, flat: what sFID takes.
      logits: 1,008, without bias: what the Inception Score takes.
    """
    x = layers.to_rgb(images) * 127.5 + 127.5
    return features(p, (resize(x) - 128) / 128)


def features(p: Params, x: Images) -> dict[str, Float[Array, "b _d"]]:
    """As `apply`, of images of 299x299 as the network is given them."""

    def unit(x: Array, name: str, **options) -> Array:
        return jax.nn.relu(layers.conv(p, name, x, **options))

    def chain(x: Array, block: str, *names: str) -> Array:
        for name in names:
            x = unit(x, f"{block}.branch{name}")
        return x

    def join(*branches: Array) -> Array:
        return jnp.concatenate(branches, axis=-1)

    x = unit(x, "Conv2d_1a_3x3", stride=2, padding="VALID")
    x = unit(x, "Conv2d_2a_3x3", padding="VALID")
    x = layers.max_pool(unit(x, "Conv2d_2b_3x3"), 3, 2)
    x = unit(unit(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3", padding="VALID")
    x = layers.max_pool(x, 3, 2)
    for block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = join(
            chain(x, block, "1x1"),
            chain(x, block, "5x5_1", "5x5_2"),
            chain(x, block, "3x3dbl_1", "3x3dbl_2", "3x3dbl_3"),
            chain(layers.mean_pool_3x3(x), block, "_pool"),
        )
    halve = {"stride": 2, "padding": "VALID"}
    x = join(
        unit(x, "Mixed_6a.branch3x3", **halve),
        unit(
            chain(x, "Mixed_6a", "3x3dbl_1", "3x3dbl_2"),
            "Mixed_6a.branch3x3dbl_3",
            **halve,
        ),
        layers.max_pool(x, 3, 2),
    )
    spatial = x
    for block in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        first = chain(x, block, "1x1")
        if block == "Mixed_6d":
            spatial = first[..., :7]
        x = join(
            first,
            chain(x, block, "7x7_1", "7x7_2", "7x7_3"),
            chain(x, block, *(f"7x7dbl_{i}" for i in range(1, 6))),
            chain(layers.mean_pool_3x3(x), block, "_pool"),
        )
    x = join(
        unit(chain(x, "Mixed_7a", "3x3_1"), "Mixed_7a.branch3x3_2", **halve),
        unit(
            chain(x, "Mixed_7a", "7x7x3_1", "7x7x3_2", "7x7x3_3"),
            "Mixed_7a.branch7x7x3_4",
            **halve,
        ),
        layers.max_pool(x, 3, 2),
    )
    for block in ("Mixed_7b", "Mixed_7c"):
        wide = chain(x, block, "3x3_1")
        deep = chain(x, block, "3x3dbl_1", "3x3dbl_2")
        last = block == "Mixed_7c"
        pooled = layers.max_pool(x, 3, 1, "SAME") if last else layers.mean_pool_3x3(x)
        x = join(
            chain(x, block, "1x1"),
            *(chain(wide, block, f"3x3_2{side}") for side in "ab"),
            *(chain(deep, block, f"3x3dbl_3{side}") for side in "ab"),
            chain(pooled, block, "_pool"),
        )
    pool = jnp.mean(x, axis=(1, 2))
    return {
        "pool": pool,
        "spatial": spatial.reshape(len(spatial), -1),
        "logits": pool @ p["fc.kernel"],
    }
