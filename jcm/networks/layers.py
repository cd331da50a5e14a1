"""Layers that all networks share."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jcm.networks import winograd
from jcm.networks.sizes import LayerSpec, UNetSizes
from jcm.runtime.errors import JcmError

DropoutKeys = Key[Array, " b"] | None
"""One key per image for dropout; None disables it."""


class Conditions(NamedTuple):
    """What a network receives about each image besides the image.

    Attributes:
      c_noise: the time input, computed from the noise level; (b, 2) for a network with
        a second time.
      labels: class of each image; None if and only if the network has no classes.
      augment: numbers that describe how each image was augmented; None for zeros, which
        mean not at all.
      guidance: guidance strength of each image; None for 1, which means no guidance.
    """

    c_noise: Float[Array, " b"] | Float[Array, "b k"]
    labels: Int[Array, " b"] | None = None
    augment: Float[Array, "b a"] | None = None
    guidance: Float[Array, " b"] | None = None


LONGEST_PERIOD = 10_000.0
"""Angular frequencies of a positional time embedding go from 1 down to 1 over this."""


def check_conditions(given: Conditions, arch: UNetSizes) -> None:
    """Checks that the conditions are those that the network takes.

    Without this check a network with classes would silently ignore that labels are
    missing.

    Raises:
      JcmError: if a condition is missing, has a wrong shape, or is unknown to the
        network.
    """
    if given.labels is None and arch.num_classes:
        raise JcmError(f"the network has {arch.num_classes} classes: pass labels")
    if given.labels is not None and not arch.num_classes:
        raise JcmError("the network has no classes: pass labels=None")
    times = 1 if given.c_noise.ndim == 1 else given.c_noise.shape[1]
    if times != arch.times:
        raise JcmError(
            f"the network takes {arch.times} time inputs, and not {times}: set"
            f" config.model.times={times}"
        )
    if given.augment is not None and given.augment.shape[-1] != arch.augment_dim:
        raise JcmError(
            f"{given.augment.shape[-1]} augmentation numbers for a network that takes"
            f" {arch.augment_dim}: set config.model.augment_dim"
        )
    if given.guidance is not None and not arch.guidance:
        raise JcmError("the network takes no guidance: set config.model.guidance=True")


def waves(
    c_noise: Float[Array, " b"] | Float[Array, "b k"],
    embed: Callable[[Float[Array, " b"]], Float[Array, "b f"]],
) -> Float[Array, "b e"]:
    """Returns the features of every time input, one after the other.

    Args:
      c_noise: the time inputs.
      embed: returns the features of one time input.
    """
    each = [c_noise] if c_noise.ndim == 1 else list(jnp.moveaxis(c_noise, 1, 0))
    return jnp.concatenate([embed(times) for times in each], axis=-1)


def guidance_input(
    guidance: Float[Array, " b"] | None, count: int
) -> Float[Array, " b"]:
    """Returns 1 - 1 / guidance, which is in [0, 1), for `count` images.

    The form is that of improved MeanFlow (Geng et al. 2025); 0 means no guidance.
    """
    return jnp.zeros(count) if guidance is None else 1 - 1 / guidance


def initializer(scale: float) -> nnx.Initializer:
    """Returns a uniform fan-average initialiser; a scale of 0 becomes 1e-10."""
    return nnx.initializers.variance_scaling(max(scale, 1e-10), "fan_avg", "uniform")


_NHWC = ("NHWC", "HWIO", "NHWC")
# Values of the settings of `jax.lax.conv_general_dilated` that change nothing.
_PLAIN = {
    "lhs_dilation": (None, (1, 1)),
    "rhs_dilation": (None, (1, 1)),
    "dimension_numbers": (
        _NHWC,
        jax.lax.conv_dimension_numbers((1,) * 4, (1,) * 4, _NHWC),
    ),
    "feature_group_count": (1,),
    "batch_group_count": (1,),
    "precision": (None,),
    "preferred_element_type": (None,),
    "out_sharding": (None,),
}


def convolve(
    x: Float[Array, "b h w c"],
    weight: Float[Array, "k k c d"],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **others: Any,
) -> Float[Array, "b p q d"]:
    """Convolves images by the fastest way that was measured.

    Args:
      x: the images.
      weight: the filter.
      strides: steps between outputs along both axes.
      padding: "SAME", "VALID", or zeros before and after both axes.
      **others: what else `jax.lax.conv_general_dilated` takes; `flax.nnx.Conv` passes
        the values that change nothing.
    """
    sizes = weight.shape[:2]
    plain = (
        tuple(strides) == (1, 1)
        and x.dtype == weight.dtype == jnp.float32
        and all(value in _PLAIN.get(name, ()) for name, value in others.items())
        and (padding == "SAME" or list(padding) == [(n // 2, n // 2) for n in sizes])
    )
    if plain and sizes == (1, 1):
        # As two matrices, so that XLA does not transpose x for the gradient.
        pixels = math.prod(x.shape[:-1])
        flat = x.reshape(pixels, x.shape[-1]) @ weight[0, 0]
        return flat.reshape(*x.shape[:-1], weight.shape[-1])
    if plain and winograd.pays_off(x.shape, weight.shape):
        return winograd.convolve(x, weight)
    return jax.lax.conv_general_dilated(x, weight, strides, padding, **others)


def conv(c_in: int, c_out: int, size: int, **settings: Any) -> nnx.Conv:
    """Returns a convolution with a square filter of `size` pixels and `convolve`."""
    return nnx.Conv(
        c_in, c_out, (size, size), conv_general_dilated=convolve, **settings
    )


class GroupNorm(nnx.Module):
    """Group normalisation, fused with an offset, a modulation and a swish.

    Means are taken first per channel and then per group, so that the large array is
    read once for the statistics and once for the result. This is 3 to 4 times faster
    on a CPU than `nnx.GroupNorm` and gives the same numbers. Offset and modulation are
    folded into the scale and shift of each channel. All computation is in float32, and
    the result is cast to `dtype`.
    """

    def __init__(
        self, channels: int, *, groups: int, epsilon: float, dtype: str, rngs: nnx.Rngs
    ):
        """Creates the scale (ones) and the bias (zeros) of each channel.

        Args:
          channels: channels of the input.
          groups: number of groups, which divides `channels`.
          epsilon: added to the variance.
          dtype: dtype of the result.
          rngs: unused, since nothing is random; every layer has this argument.
        """
        del rngs
        self.groups, self.epsilon, self.dtype = groups, epsilon, dtype
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        *,
        offset: Float[Array, "b c"] | None = None,
        modulation: tuple[Float[Array, "b c"], Float[Array, "b c"]] | None = None,
        swish: bool = False,
    ) -> Float[Array, "b h w c"]:
        """Normalises the activations of each image and group.

        Args:
          x: the activations.
          offset: added to x before the normalisation. Adding it outside costs a GPU an
            array as large as x, since XLA fuses the sum with the convolution before it.
          modulation: (scale, shift), applied to the normalised y as
            y (1 + scale) + shift.
          swish: whether y sigmoid(y) is applied at the end.
        """
        batch, channels = x.shape[0], x.shape[-1]
        x32 = x.astype(jnp.float32)
        scale, shift = self.scale[...], self.bias[...]
        mean, square = jnp.mean(x32, axis=(1, 2)), jnp.mean(x32 * x32, axis=(1, 2))
        added = jnp.zeros(()) if offset is None else offset.astype(jnp.float32)
        mean, square = mean + added, square + added * (2 * mean + added)

        def group_mean(per_channel: Array) -> Array:
            grouped = per_channel.reshape(batch, self.groups, -1)
            mean = jnp.mean(grouped, axis=-1, keepdims=True)
            return jnp.broadcast_to(mean, grouped.shape).reshape(batch, channels)

        mean, square = group_mean(mean), group_mean(square)
        variance = jnp.maximum(square - mean * mean, 0)
        scale = scale * jax.lax.rsqrt(variance + self.epsilon)
        shift = shift + (added - mean) * scale
        if modulation is not None:
            times, plus = (each.astype(jnp.float32) for each in modulation)
            scale, shift = scale * (1 + times), shift * (1 + times) + plus
        y = x32 * scale[:, None, None, :] + shift[:, None, None, :]
        return (nnx.swish(y) if swish else y).astype(self.dtype)


def dropout(
    x: Float[Array, "b h w c"], rate: float, keys: DropoutKeys, index: int
) -> Float[Array, "b h w c"]:
    """Applies dropout with one key for each image.

    The mask of an image does not depend on the batch or on the devices.

    Args:
      x: the activations.
      rate: share of the activations that is set to zero.
      keys: a key for each image, or None to disable dropout.
      index: number of the layer, which is folded into the keys.
    """
    if keys is None or rate == 0:
        return x

    def one(key: Array, image: Array) -> Array:
        layer_key = jax.random.fold_in(key, index)
        keep = jax.random.bernoulli(layer_key, 1 - rate, image.shape)
        return jnp.where(keep, image / (1 - rate), 0)

    return jax.vmap(one)(keys, x)


def attention(
    query: Float[Array, "b t n d"],
    key: Float[Array, "b t n d"],
    value: Float[Array, "b t n d"],
) -> Float[Array, "b t n d"]:
    """Computes softmax attention of each head, by cuDNN where it was measured faster.

    cuDNN's kernels do not store the matrix of all pairs. Forward and backward on an
    H200, they take 0.22 of the time of XLA for 1,024 pixels and heads of 64 channels,
    0.40 for 256 pixels, and 1.18 for 256 pixels and heads of 256 channels.
    """
    _, pixels, _, width = query.shape
    kernels = _has_kernels(jax.devices()[0], width, query.dtype)
    by_cudnn = kernels and pixels >= 256
    return jax.nn.dot_product_attention(
        query, key, value, implementation="cudnn" if by_cudnn else None
    )


def _has_kernels(device: Any, width: int, dtype: jnp.dtype) -> bool:
    """Returns whether cuDNN supports heads of this width and dtype on a JAX device."""
    return (
        device.platform == "gpu"
        and "cuda" in device.client.platform_version
        and float(device.compute_capability) >= 8.0
        and dtype in (jnp.bfloat16, jnp.float16)
        and width <= 128
        and width % 8 == 0
    )


def apply_layer(
    layer: nnx.Module, spec: LayerSpec, arch: UNetSizes, *inputs: Any
) -> Array:
    """Applies a layer; the backward pass recomputes it at the sizes of `arch.remat`."""
    compute = type(layer).__call__
    return (nnx.remat(compute) if spec.size in arch.remat else compute)(layer, *inputs)
