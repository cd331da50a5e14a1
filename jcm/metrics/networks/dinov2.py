"""DINOv2 ViT-L/14 (Oquab et al. 2023), the network of FD-DINOv2.

Stein et al. 2023 found that its features agree better with human judgement than
Inception's. It was trained without ImageNet's labels.
"""

import math

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
IMAGE_SIZE = 224
"""Height and width that images are resized to."""
_PATCH = 14
_HEADS = 16
_EPSILON = 1e-6


def params(weights: Weights) -> Params:
    """Converts the published state dict of the backbone.

    The position embeddings are published for images of 518x518; they are resized for
    224x224 here.
    """
    found = layers.conv_params(weights, "patch_embed.proj")
    found["cls_token"] = jnp.asarray(layers.take(weights, "cls_token"))
    positions = np.asarray(layers.take(weights, "pos_embed"))
    found["pos_embed"] = jnp.asarray(_resize_positions(positions))
    blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    for block in range(len(blocks)):
        prefix = f"blocks.{block}"
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            found |= layers.conv_params(weights, f"{prefix}.{layer}")
        for layer in ("norm1", "norm2"):
            found |= _norm_params(weights, f"{prefix}.{layer}")
        for layer in ("ls1.gamma", "ls2.gamma"):
            name = f"{prefix}.{layer}"
            found[name] = jnp.asarray(layers.take(weights, name))
    return found | _norm_params(weights, "norm")


def _norm_params(weights: Weights, name: str) -> Params:
    names = (f"{name}.weight", f"{name}.bias")
    return {each: jnp.asarray(layers.take(weights, each)) for each in names}


def _resize_positions(positions: np.ndarray) -> np.ndarray:
    """Resizes bicubically as DINOv2 does, which adds 0.1 to the size for the scale."""
    cls, grid = positions[:, :1], positions[:, 1:]
    old, new = math.isqrt(grid.shape[1]), IMAGE_SIZE // _PATCH
    if old == new:
        return positions
    matrix = _cubic_matrix(old, new, old / (new + 0.1))
    grid = grid.reshape(old, old, -1).astype(np.float64)
    grid = np.einsum("ai,bj,ijc->abc", matrix, matrix, grid)
    grid = grid.reshape(1, new * new, -1).astype(np.float32)
    return np.concatenate([cls, grid], axis=1)


def _cubic_matrix(old: int, new: int, step: float) -> np.ndarray:
    """Returns PyTorch's cubic interpolation (a = -0.75) along one axis as a matrix.

    Args:
      old: length of the input.
      new: length of the output.
      step: distance of output elements in the input.
    """
    a, matrix = -0.75, np.zeros((new, old))
    for i in range(new):
        place = (i + 0.5) * step - 0.5
        first = math.floor(place) - 1
        for j in range(first, first + 4):
            d = abs(place - j)
            if d <= 1:
                value = (a + 2) * d**3 - (a + 3) * d**2 + 1
            else:
                value = a * (d**3 - 5 * d**2 + 8 * d - 4)
            matrix[i, min(max(j, 0), old - 1)] += value
    return matrix


def apply(p: Params, images: Images) -> dict[str, Float[Array, "b _d"]]:
    """Computes features of images.

    Args:
      p: parameters from `params`.
      images: images in [-1, 1] of any size, grey or colour. They are resized to 224x224
        by cubic interpolation, with smoothing if they become smaller.

    Returns:
      A dictionary of one feature.
      cls: the normalised class token, (b, 1024).
    """
    return {"cls": features(p, prepare(images))}


def prepare(images: Images) -> Images:
    """Converts images in [-1, 1] to the input of the network."""
    x = layers.to_rgb(images) / 2 + 0.5
    x = (x - jnp.array(layers.IMAGENET_MEAN)) / jnp.array(layers.IMAGENET_DEVIATION)
    return jax.image.resize(x, (len(x), IMAGE_SIZE, IMAGE_SIZE, 3), "cubic")


def features(p: Params, x: Images) -> Float[Array, "b d"]:
    """Returns the class token of images that `prepare` has converted."""
    x = layers.conv(p, "patch_embed.proj", x, stride=_PATCH, padding="VALID")
    batch, *_, width = x.shape
    cls = jnp.broadcast_to(p["cls_token"], (batch, 1, width))
    x = jnp.concatenate([cls, x.reshape(batch, -1, width)], axis=1) + p["pos_embed"]
    block = 0
    while f"blocks.{block}.norm1.weight" in p:
        name = f"blocks.{block}"
        y = layers.dense(p, f"{name}.attn.qkv", _norm(p, f"{name}.norm1", x))
        query, key, value = jnp.split(
            y.reshape(batch, -1, 3 * _HEADS, width // _HEADS), 3, 2
        )
        y = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        x = x + p[f"{name}.ls1.gamma"] * layers.dense(p, f"{name}.attn.proj", y)
        y = layers.dense(p, f"{name}.mlp.fc1", _norm(p, f"{name}.norm2", x))
        y = layers.dense(p, f"{name}.mlp.fc2", jax.nn.gelu(y, approximate=False))
        x = x + p[f"{name}.ls2.gamma"] * y
        block += 1
    return _norm(p, "norm", x)[:, 0]


def _norm(p: Params, name: str, x: Array) -> Array:
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.var(x, axis=-1, keepdims=True)
    y = (x - mean) * jax.lax.rsqrt(variance + _EPSILON)
    return y * p[f"{name}.weight"] + p[f"{name}.bias"]
