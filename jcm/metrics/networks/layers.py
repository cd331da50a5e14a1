"""Layers of published networks, with weights as PyTorch stores them."""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jcm.runtime.arrays import check_floats
from jcm.runtime.errors import JcmError

Params = dict[str, Array]
"""Parameters of a network, by name."""
Images = Float[Array, "_b _h _w _c"]
"""Images, or feature maps of them."""
Weights = Mapping[str, np.ndarray]
"""Arrays as published; the kernels of convolutions are (out, in, height, width)."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet's pixels in [0, 1], for each channel."""
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
"""Standard deviation of ImageNet's pixels in [0, 1], for each channel."""


def take(weights: Weights, name: str) -> np.ndarray:
    """Returns one array by its name.

    Raises:
      JcmError: if the file has no array of this name.
    """
    if name not in weights:
        raise JcmError(
            f"the weights have no {name!r}: use the file of the right network"
        )
    return weights[name]


def conv_params(weights: Weights, name: str) -> Params:
    """Returns the kernel and any bias of a convolution or dense layer."""
    kernel = take(weights, f"{name}.weight")
    kernel = kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T
    found = {f"{name}.kernel": jnp.asarray(kernel, jnp.float32)}
    if f"{name}.bias" in weights:
        found[f"{name}.bias"] = jnp.asarray(weights[f"{name}.bias"], jnp.float32)
    return found


def folded_params(
    weights: Weights, conv: str, norm: str, *, epsilon: float, name: str = ""
) -> Params:
    """Folds the batch normalisation after a convolution into its kernel and bias.

    Args:
      weights: the arrays of the file.
      conv: name of the convolution, which has no bias.
      norm: name of the normalisation.
      epsilon: added to the variance of the normalisation.
      name: name of the result; by default that of the convolution.
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
    """Applies a convolution with bias, in the dtype of `x`.

    Args:
      params: the parameters of the network.
      name: name of the convolution.
      x: its input.
      stride: step between output pixels.
      padding: "SAME", "VALID", or the number of zeros on every side.
    """
    kernel = params[f"{name}.kernel"].astype(x.dtype)

    def padded(pads: str | Sequence) -> Callable[[Images], Images]:
        return lambda x: jax.lax.conv_general_dilated(
            *(x, kernel, (stride, stride), pads),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def by_one_more_row(x: Images) -> Images:
        # XLA for CPUs takes up to five times longer if nothing at all is padded.
        rows = (x.shape[1] - kernel.shape[0]) // stride + 1
        return padded([(0, 1), (0, 0)])(x)[:, :rows]

    if kernel.shape[:2] == (1, 1) and stride == 1 and padding in ("SAME", "VALID", 0):
        y = x @ kernel[0, 0]
    elif padding == "VALID":
        y = jax.lax.platform_dependent(x, cpu=by_one_more_row, default=padded("VALID"))
    else:
        pads = [(padding, padding)] * 2 if isinstance(padding, int) else padding
        y = padded(pads)(x)
    return y + params[f"{name}.bias"].astype(x.dtype)


def depthwise(params: Params, name: str, x: Images, *, stride: int) -> Images:
    """Applies a depthwise convolution with bias, padded as "SAME".

    It is computed as a sum of shifted images, which XLA fuses into one pass. On a CPU
    this is several times faster than XLA's grouped convolution.
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
    """Applies a dense layer with bias, in the dtype of `x`."""
    kernel, bias = (params[f"{name}.{part}"] for part in ("kernel", "bias"))
    return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


def max_pool(
    x: Images, size: int, stride: int, padding: str | Sequence = "VALID"
) -> Images:
    """Computes the maximum over windows; padding counts as minus infinity.

    If the windows tile the image, equal maxima share the gradient, except on TPUs,
    where the first gets all of it. Sharing saves an eighth of the time of LPIPS on an
    H200, but according to the TPU's compiler it would move a seventh more bytes there.

    Args:
      x: the input.
      size: height and width of a window.
      stride: step between windows.
      padding: "SAME", "VALID", or pairs of padding for the four axes.
    """

    def by_windows(x: Images) -> Images:
        # JAX recognises a maximum, and its gradient, only by a numpy constant.
        least = np.array(-np.inf, x.dtype)
        return jax.lax.reduce_window(x, least, jax.lax.max, window, step, pads)

    def by_tiles(x: Images) -> Images:
        tiles = (len(x), height // size, size, width // size, size, x.shape[-1])
        return jnp.max(x.reshape(tiles), axis=(2, 4))

    def by_shifts(x: Images) -> Images:
        x = jax.lax.pad(x, jnp.array(-np.inf, x.dtype), [(*pair, 0) for pair in pads])
        for axis in (1, 2):
            x = functools.reduce(jnp.maximum, _shifted(x, axis, size, stride))
        return x

    height, width = x.shape[1:3]
    window, step = (1, size, size, 1), (1, stride, stride, 1)
    pads = padding
    if isinstance(padding, str):
        pads = jax.lax.padtype_to_pads(x.shape, window, step, padding)
    if size != stride or padding != "VALID" or height % size or width % size:
        return jax.lax.platform_dependent(x, cpu=by_shifts, default=by_windows)
    return jax.lax.platform_dependent(x, tpu=by_windows, default=by_tiles)


def mean_pool_3x3(x: Images) -> Images:
    """Computes the mean over windows of 3x3, in which padding does not count."""
    for axis in (1, 2):
        zeros = [(int(a == axis),) * 2 for a in range(4)]
        ones = jnp.ones([n if a == axis else 1 for a, n in enumerate(x.shape)], x.dtype)
        total, count = (
            functools.reduce(jnp.add, _shifted(jnp.pad(y, zeros), axis, 3, 1))
            for y in (x, ones)
        )
        x = total / count
    return x


def _shifted(x: Images, axis: int, size: int, stride: int) -> list[Images]:
    """Returns the elements of all windows along an axis, by their place in the window.

    On a CPU, a sum or maximum of them is several times faster than `reduce_window`.
    """
    count = max((x.shape[axis] - size) // stride + 1, 0)
    before = (slice(None),) * axis
    return [
        x[(*before, slice(start, start + count * stride, stride))]
        for start in range(size)
    ]


def to_rgb(x: Images) -> Images:
    """Repeats the channel of grey images three times; colour images are unchanged.

    Raises:
      JcmError: if the images have neither 1 nor 3 channels, or are not floats.
    """
    check_floats("images", x)
    if x.shape[-1] not in (1, 3):
        raise JcmError(f"images have {x.shape[-1]} channels: use 1 or 3")
    return jnp.broadcast_to(x, (*x.shape[:3], 3))
