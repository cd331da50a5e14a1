"""Layers and sizes that networks share."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jcm.runtime.errors import JcmError


@dataclasses.dataclass(frozen=True)
class Levels:
    """Sizes of a U-Net; names as in the original configs.

    Attributes:
      image_size: height and width; divisible by 2^(levels - 1).
      image_channels: 3 for colour, 1 for grey.
      num_classes: 0 for an unconditional network.
      nf: channels at full resolution before `ch_mult`.
      ch_mult: channel multiplier of each level; the first is full resolution.
      num_res_blocks: residual blocks of each level.
      attn_resolutions: image sizes that get self-attention.
      dropout: rate inside the residual blocks.
      dtype: of the computation; parameters and time embedding stay float32.
      remat: image sizes whose blocks and attention are computed again in the backward
        pass instead of being kept: more time, less memory.
    """

    image_size: int
    image_channels: int
    num_classes: int
    nf: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    dropout: float
    dtype: str
    remat: tuple[int, ...]

    @property
    def sizes(self) -> list[int]:
        """Image size at each level, descending."""
        return [self.image_size // 2**level for level in range(len(self.ch_mult))]

    def check(self) -> None:
        """Raises JcmError where the sizes do not fit together."""
        halvings = 2 ** (len(self.ch_mult) - 1)
        if self.image_size < halvings or self.image_size % halvings:
            raise JcmError(
                f"config.model.ch_mult={self.ch_mult} has {len(self.ch_mult)} levels, "
                f"but config.data.image_size={self.image_size} does not divide by "
                f"{halvings}: use fewer levels or another image size"
            )
        for name in ("attn_resolutions", "remat"):
            if set(getattr(self, name)) - set(self.sizes):
                raise JcmError(
                    f"config.model.{name}={getattr(self, name)}: the network works at"
                    f" {self.sizes} only"
                )
        if self.dtype not in ("float32", "bfloat16"):
            raise JcmError(
                f"config.model.dtype={self.dtype!r}: use float32 or bfloat16"
            )


@dataclasses.dataclass(frozen=True)
class Step:
    """A layer of a U-Net.

    Attributes:
      part: "down", "middle" or "up".
      kind: "block", "attn", or "down" and "up" where the size changes.
      size: height and width of the input.
      index: of its kind within part and size.
      c_in: channels of the input; after joining, where it joins.
      c_out: channels of the output.
      keeps: the output is kept for the way up.
      joins: the input is joined by the output that was kept last.
    """

    part: str
    kind: str
    size: int
    index: int
    c_in: int
    c_out: int
    keeps: bool = False
    joins: bool = False

    @property
    def name(self) -> str:
        """Tells it from the others of its part, such as res16_block0."""
        number = self.index if self.kind in ("block", "attn") else ""
        return f"res{self.size}_{self.kind}{number}"

    @property
    def path(self) -> str:
        """Of its parameters."""
        return f"{self.part}/{self.name}"


def steps(arch: Levels, first: int, attends_each: bool) -> tuple[Step, ...]:
    """The layers between the first convolution and the last normalisation, in order.

    Args:
      arch: the sizes.
      first: channels that the first convolution gives.
      attends_each: on the way up attention follows every block of a level, and not the
        last alone.
    """
    made: list[Step] = []
    channels, kept = first, [first]
    levels = list(zip(arch.sizes, arch.ch_mult, strict=True))
    for size, mult in levels:
        width, attends = arch.nf * mult, size in arch.attn_resolutions
        for i in range(arch.num_res_blocks):
            made.append(
                Step("down", "block", size, i, channels, width, keeps=not attends)
            )
            if attends:
                made.append(Step("down", "attn", size, i, width, width, keeps=True))
            channels = width
            kept.append(channels)
        if size != arch.sizes[-1]:
            made.append(Step("down", "down", size, 0, channels, channels, keeps=True))
            kept.append(channels)
    for kind, i in (("block", 0), ("attn", 0), ("block", 1)):
        made.append(Step("middle", kind, arch.sizes[-1], i, channels, channels))
    for size, mult in reversed(levels):
        width, attends = arch.nf * mult, size in arch.attn_resolutions
        for i in range(arch.num_res_blocks + 1):
            joined = channels + kept.pop()
            made.append(Step("up", "block", size, i, joined, width, joins=True))
            channels = width
            if attends and (attends_each or i == arch.num_res_blocks):
                made.append(Step("up", "attn", size, i, width, width))
        if size != arch.image_size:
            made.append(Step("up", "up", size, 0, channels, channels))
    return tuple(made)


def check_labels(labels: Int[Array, " b"] | None, num_classes: int) -> None:
    """Raises JcmError for missing labels, or labels of an unconditional network."""
    if (labels is None) != (num_classes == 0):
        raise JcmError(
            f"a network of {num_classes} classes takes labels where there are"
            " classes, and only there"
        )


def initializer(scale: float) -> nnx.Initializer:
    """Uniform fan-average initialiser; a scale of 0 is a very small one."""
    return nnx.initializers.variance_scaling(max(scale, 1e-10), "fan_avg", "uniform")


class GroupNorm(nnx.Module):
    """Group normalisation, and what stands around it, in one pass over the elements.

    Means are taken per channel first and per group after, so that the large array is
    read once for the statistics and once for the result: 3 to 4 times faster on a CPU
    than `nnx.GroupNorm`, and the same numbers. What is added or multiplied per channel
    joins the numbers per channel. All is float32 until the result is rounded.
    """

    def __init__(
        self, channels: int, *, groups: int, epsilon: float, dtype: str, rngs: nnx.Rngs
    ):
        del rngs  # nothing is random; every layer is made in the same way
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
        """Normalises.

        Args:
          x: activations.
          offset: added to x before. To add it outside costs a GPU an array as large
            as x: XLA hands it to the convolution that made x.
          modulation: (scale, shift) of the normalised y: y (1 + scale) + shift.
          swish: last, y becomes y sigmoid(y).
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
    x: Float[Array, "b h w c"], rate: float, keys: Key[Array, " b"] | None, index: int
) -> Float[Array, "b h w c"]:
    """Dropout with one counted key per example: the same mask on any device.

    Args:
      x: activations.
      rate: share set to zero.
      keys: one per example; None leaves dropout out.
      index: number of the layer, which tells the masks of one network apart.
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
    """Softmax attention of each head, by cuDNN where that was seen to be faster.

    Its kernels keep no matrix of all pairs. Forward and backward on an H200 they take
    0.22 of the time of XLA's for 1,024 pixels and heads of 64 channels, 0.40 for 256
    pixels, and 1.18 for 256 pixels and heads of 256 channels.
    """
    _, pixels, _, width = query.shape
    kernels = _has_kernels(jax.devices()[0], width, query.dtype)
    by_cudnn = kernels and pixels >= 256
    implementation = "cudnn" if by_cudnn else None
    return jax.nn.dot_product_attention(
        query, key, value, implementation=implementation
    )


def _has_kernels(device: Any, width: int, dtype: jnp.dtype) -> bool:
    """Whether cuDNN attends to heads of such width and type on a device of JAX."""
    return (
        device.platform == "gpu"
        and "cuda" in device.client.platform_version
        and float(device.compute_capability) >= 8.0
        and dtype in (jnp.bfloat16, jnp.float16)
        and width <= 128
        and width % 8 == 0
    )


def call(layer: nnx.Module, step: Step, arch: Levels, *inputs: Any) -> Array:
    """The output of a layer, computed again in the backward pass where it shall be."""
    compute = type(layer).__call__
    return (nnx.remat(compute) if step.size in arch.remat else compute)(layer, *inputs)
