"""Sizes and layers that all networks share."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

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


@dataclasses.dataclass(frozen=True)
class UNetSizes:
    """The sizes that every U-Net has; names are those of the original configs.

    Attributes:
      image_size: height and width of the images, divisible by 2^(levels - 1).
      image_channels: 3 for colour, 1 for grey.
      num_classes: number of classes; 0 for an unconditional network.
      nf: channels at full resolution before `ch_mult`.
      ch_mult: channel multiplier of each level; the first level has full resolution.
      num_res_blocks: residual blocks of each level.
      attn_resolutions: image sizes at which there is self-attention.
      dropout: dropout rate inside the residual blocks.
      dtype: dtype of the computation; parameters and time embedding stay float32.
      remat: image sizes whose blocks and attention are recomputed in the backward
        pass instead of being stored, which saves memory and costs time.
      times: number of time inputs: 1, or 2 for a method with a second time.
      augment_dim: how many numbers describe the augmentation of an image; 0 for none.
      guidance: whether the network takes a guidance strength.
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
    times: int = dataclasses.field(default=1, kw_only=True)
    augment_dim: int = dataclasses.field(default=0, kw_only=True)
    guidance: bool = dataclasses.field(default=False, kw_only=True)

    @property
    def sizes(self) -> list[int]:
        """Image size at each level, in descending order."""
        return [self.image_size // 2**level for level in range(len(self.ch_mult))]

    def check(self) -> None:
        """Checks that the sizes are consistent.

        Raises:
          JcmError: if they are not.
        """
        halvings = 2 ** (len(self.ch_mult) - 1)
        if self.image_size < halvings or self.image_size % halvings:
            raise JcmError(
                f"config.data.image_size={self.image_size} is not divisible by"
                f" {halvings}, which the {len(self.ch_mult)} levels of"
                f" config.model.ch_mult={self.ch_mult} require: use fewer levels or"
                " another image size"
            )
        for name in ("attn_resolutions", "remat"):
            if set(getattr(self, name)) - set(self.sizes):
                raise JcmError(
                    f"config.model.{name}={getattr(self, name)} names an image size"
                    f" that the network does not have: use some of {self.sizes}"
                )
        if self.dtype not in ("float32", "bfloat16"):
            raise JcmError(
                f"config.model.dtype={self.dtype!r}: use float32 or bfloat16"
            )


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """The place and the sizes of one layer of a U-Net.

    Attributes:
      part: "down", "middle" or "up".
      kind: "block", "attn", or "down" and "up" for a change of resolution.
      size: height and width of the input.
      index: number among the layers of the same part, kind and size.
      c_in: channels of the input, including a skip connection that joins it.
      c_out: channels of the output.
      keeps: whether the output is kept as a skip connection.
      joins: whether the last kept output is concatenated to the input.
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
        """A name that is unique within the part, such as res16_block0."""
        number = self.index if self.kind in ("block", "attn") else ""
        return f"res{self.size}_{self.kind}{number}"

    @property
    def path(self) -> str:
        """Path of the parameters, such as down/res16_block0."""
        return f"{self.part}/{self.name}"


def unet_layers(
    arch: UNetSizes, first: int, attends_each: bool
) -> tuple[LayerSpec, ...]:
    """Lists the layers between the first convolution and the last normalisation.

    Args:
      arch: the sizes of the network.
      first: output channels of the first convolution.
      attends_each: on the way up, whether attention follows every block of a level or
        only the last one.

    Returns:
      The layers in the order in which they are applied.
    """
    specs: list[LayerSpec] = []
    channels, kept = first, [first]
    levels = list(zip(arch.sizes, arch.ch_mult, strict=True))
    for size, mult in levels:
        width, attends = arch.nf * mult, size in arch.attn_resolutions
        for i in range(arch.num_res_blocks):
            specs.append(
                LayerSpec("down", "block", size, i, channels, width, keeps=not attends)
            )
            if attends:
                specs.append(
                    LayerSpec("down", "attn", size, i, width, width, keeps=True)
                )
            channels = width
            kept.append(channels)
        if size != arch.sizes[-1]:
            specs.append(
                LayerSpec("down", "down", size, 0, channels, channels, keeps=True)
            )
            kept.append(channels)
    for kind, i in (("block", 0), ("attn", 0), ("block", 1)):
        specs.append(LayerSpec("middle", kind, arch.sizes[-1], i, channels, channels))
    for size, mult in reversed(levels):
        width, attends = arch.nf * mult, size in arch.attn_resolutions
        for i in range(arch.num_res_blocks + 1):
            joined = channels + kept.pop()
            specs.append(LayerSpec("up", "block", size, i, joined, width, joins=True))
            channels = width
            if attends and (attends_each or i == arch.num_res_blocks):
                specs.append(LayerSpec("up", "attn", size, i, width, width))
        if size != arch.image_size:
            specs.append(LayerSpec("up", "up", size, 0, channels, channels))
    return tuple(specs)


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
