"""Layers of published classifiers, on weights as PyTorch stores them."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jcm.runtime.arrays import AnyArray
from jcm.runtime.errors import JcmError

Params = dict[str, AnyArray]
Images = Float[AnyArray, "_b _h _w _c"]
# As published: convolutions as (out, in, height, width).
Weights = Mapping[str, np.ndarray]


def take(weights: Weights, name: str) -> np.ndarray:
    """One array by its name.

    Raises:
      JcmError: the file has none of that name.
    """
    if name not in weights:
        raise JcmError(f"the weights have no {name!r}: they are of another network")
    return weights[name]


def conv_params(weights: Weights, name: str) -> Params:
    """Kernel and, where there is one, bias of a convolution or dense layer."""
    kernel = take(weights, f"{name}.weight")
    kernel = kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T
    found = {f"{name}.kernel": jnp.asarray(kernel, jnp.float32)}
    if f"{name}.bias" in weights:
        found[f"{name}.bias"] = jnp.asarray(weights[f"{name}.bias"], jnp.float32)
    return found


def folded_params(
    weights: Weights, conv: str, norm: str, *, epsilon: float, name: str = ""
) -> Params:
    """A convolution with the batch normalisation after it made part of it.

    Args:
      weights: the file's content.
      conv: name of the convolution, which has no bias.
      norm: name of the normalisation.
      epsilon: added to its variance.
      name: of the result; that of the convolution by default.
    """
    scale, shift, mean, variance = (
        np.asarray(take(weights, f"{norm}.{part}"), np.float64)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = scale / np.sqrt(variance + epsilon)
    kernel = take(weights, f"{conv}.weight") * scale[:, None, None, None]
    name = name or conv
    return {
        f"{name}.kernel": jnp.asarray(kernel.transpose(2, 3, 1, 0), jnp.float32),
        f"{name}.bias": jnp.asarray(shift - mean * scale, jnp.float32),
    }


def conv(
    params: Params,
    name: str,
    x: Images,
    *,
    stride: int = 1,
    padding: str | int = "SAME",
) -> Images:
    """A convolution with bias, in the type of `x`; an int pads every side by it."""
    if isinstance(padding, int):
        padding = [(padding, padding)] * 2
    y = jax.lax.conv_general_dilated(
        x,
        params[f"{name}.kernel"].astype(x.dtype),
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + params[f"{name}.bias"].astype(x.dtype)


def depthwise(params: Params, name: str, x: Images, *, stride: int) -> Images:
    """A convolution with bias of each channel by itself, padded as "SAME".

    As a sum of shifted images, which XLA makes one pass of: on a CPU several times
    faster than its convolution with groups.
    """
    kernel = params[f"{name}.kernel"].astype(x.dtype)
    sizes, window = x.shape[1:3], kernel.shape[0]
    outs = [-(-size // stride) for size in sizes]
    totals = [
        max((out - 1) * stride + window - size, 0)
        for out, size in zip(outs, sizes, strict=True)
    ]
    pads = [(total // 2, total - total // 2) for total in totals]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    ends = [(out - 1) * stride + 1 for out in outs]
    y = params[f"{name}.bias"].astype(x.dtype)
    for i in range(window):
        for j in range(window):
            part = x[:, i : i + ends[0] : stride, j : j + ends[1] : stride]
            y = y + part * kernel[i, j, 0]
    return y


def dense(params: Params, name: str, x: Array) -> Array:
    """A dense layer with bias, in the type of `x`."""
    kernel, bias = (params[f"{name}.{part}"] for part in ("kernel", "bias"))
    return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


def max_pool(
    x: Images, size: int, stride: int, padding: str | Sequence = "VALID"
) -> Images:
    """Maximum over windows; padding never wins.

    Where windows tile the image, equal maxima share the gradient but on TPUs: an H200
    then takes an eighth less time for LPIPS than by sending it to the first, while a
    TPU's compiler says that it would move a seventh more bytes.
    """

    def by_windows(x: Images) -> Images:
        return jax.lax.reduce_window(
            x,
            np.array(-np.inf, x.dtype),  # of numpy, or JAX does not see a maximum in it
            jax.lax.max,
            (1, size, size, 1),
            (1, stride, stride, 1),
            padding,
        )

    def by_tiles(x: Images) -> Images:
        tiles = (len(x), height // size, size, width // size, size, x.shape[-1])
        return jnp.max(x.reshape(tiles), axis=(2, 4))

    height, width = x.shape[1:3]
    if size != stride or padding != "VALID" or height % size or width % size:
        return by_windows(x)
    return jax.lax.platform_dependent(x, tpu=by_windows, default=by_tiles)


def mean_pool_3x3(x: Images) -> Images:
    """Mean over windows of 3x3 that counts no padding."""
    window, step = (1, 3, 3, 1), (1, 1, 1, 1)

    def add(y: Array) -> Array:
        zero = np.zeros((), y.dtype)
        return jax.lax.reduce_window(y, zero, jax.lax.add, window, step, "SAME")

    return add(x) / add(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


def to_rgb(x: Images) -> Images:
    """Grey images thrice; colour as it is."""
    if x.shape[-1] not in (1, 3):
        raise JcmError(
            f"images of {x.shape[-1]} channels: the networks see grey or colour"
        )
    return jnp.broadcast_to(x, (*x.shape[:3], 3))
