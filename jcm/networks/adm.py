"""ADM (Dhariwal and Nichol 2021), the network of consistency models at 64x64 and above.

The variant is the one of Song et al. 2023: the time input is 250 ln(sigma), where
Karras et al. 2022 have ln(sigma) / 4, and the published networks change the resolution
inside residual blocks. In the networks for ImageNet the embedding scales and shifts the
normalised activations; in those for LSUN it is added before the normalisation.
"""

import dataclasses
import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jcm.networks.layers import (
    LONGEST_PERIOD,
    Conditions,
    DropoutKeys,
    GroupNorm,
    apply_layer,
    attention,
    check_conditions,
    conv,
    dropout,
    guidance_input,
    waves,
)
from jcm.networks.sizes import LayerSpec, UNetSizes, unet_layers
from jcm.runtime.errors import JcmError


@dataclasses.dataclass(frozen=True)
class Architecture(UNetSizes):
    """Sizes of an ADM; `sizes.UNetSizes` documents the common ones.

    Attributes:
      num_heads: heads of each attention layer; 0 if `head_channels` determines them.
      head_channels: channels of each head; 0 if `num_heads` determines them.
      time_scale: factor of the time input; 1000 in OpenAI's networks, 1 in NVlabs'.
      scale_shift_norm: whether the embedding scales and shifts the result of the second
        normalisation of a block, instead of being added to its input.
      resblock_updown: whether residual blocks, instead of plain layers, change the
        resolution.
    """

    num_heads: int
    head_channels: int
    time_scale: float
    scale_shift_norm: bool
    resblock_updown: bool

    @property
    def attention_widths(self) -> set[int]:
        """Channels of the attention layers; the middle always has one."""
        return {spec.c_out for spec in self.layers if spec.kind == "attn"}

    def heads(self, channels: int) -> int:
        """Returns the number of attention heads of a layer with these channels."""
        return self.num_heads or channels // self.head_channels

    @property
    def first_width(self) -> int:
        """Output channels of the first convolution."""
        return self.nf * self.ch_mult[0]

    @functools.cached_property
    def layers(self) -> tuple[LayerSpec, ...]:
        """The layers between the first and the last; see `sizes.unet_layers`."""
        return unet_layers(self, self.first_width, attends_each=True)

    def check(self) -> None:
        """Checks that the sizes are consistent.

        Raises:
          JcmError: if they are not.
        """
        super().check()
        if sorted(np.sign((self.num_heads, self.head_channels))) != [0, 1]:
            raise JcmError(
                f"config.model.adm: num_heads={self.num_heads} and head_channels="
                f"{self.head_channels}: set one above 0 and the other to 0"
            )
        for width in sorted(self.attention_widths):
            name = "head_channels" if self.head_channels else "num_heads"
            if width % getattr(self, name):
                raise JcmError(
                    f"config.model.adm.{name}={getattr(self, name)} does not divide"
                    f" {width} channels: use a divisor"
                )


def _conv(
    c_in: int,
    c_out: int,
    size: int,
    arch: Architecture,
    rngs: nnx.Rngs,
    stride: int = 1,
) -> nnx.Conv:
    return conv(
        c_in,
        c_out,
        size,
        strides=stride,
        padding=size // 2,
        dtype=jnp.dtype(arch.dtype),
        kernel_init=_fan_in(),
        rngs=rngs,
    )


def _fan_in() -> nnx.Initializer:
    """Returns PyTorch's default initialiser: uniform with variance 1 / (3 fan-in)."""
    return nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _zero_conv(c_in: int, c_out: int, arch: Architecture, rngs: nnx.Rngs) -> nnx.Conv:
    return conv(
        c_in,
        c_out,
        3,
        dtype=jnp.dtype(arch.dtype),
        kernel_init=nnx.initializers.zeros,
        rngs=rngs,
    )


def _norm(channels: int, arch: Architecture, rngs: nnx.Rngs) -> GroupNorm:
    return GroupNorm(
        channels,
        groups=math.gcd(channels, 32),
        epsilon=1e-5,
        dtype=arch.dtype,
        rngs=rngs,
    )


def _halve(x: Float[Array, "b h w c"]) -> Float[Array, "b p q c"]:
    """Halves height and width by means of 2x2 pixels."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return jnp.mean(x, axis=(2, 4))


def _double(x: Float[Array, "b h w c"]) -> Float[Array, "b p q c"]:
    """Doubles height and width by repeating every pixel."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class Embedding(nnx.Module):
    """Embeds the conditions by sines and two dense layers, and adds the label.

    A second time, an augmentation and a guidance strength join as in NCSN++.
    """

    def __init__(self, arch: Architecture, rngs: nnx.Rngs):
        width = 4 * arch.nf
        self.channels, self.time_scale = arch.nf, arch.time_scale
        features = arch.times * arch.nf
        self.dense0 = nnx.Linear(features, width, kernel_init=_fan_in(), rngs=rngs)
        self.dense1 = nnx.Linear(width, width, kernel_init=_fan_in(), rngs=rngs)
        if arch.num_classes:
            unit = nnx.initializers.normal(1.0)
            self.label = nnx.Embed(
                arch.num_classes, width, embedding_init=unit, rngs=rngs
            )
        dense: dict[str, Any] = {"kernel_init": _fan_in(), "rngs": rngs}
        if arch.augment_dim:
            # Without a bias, so that zeros mean an image as it is.
            self.augment = nnx.Linear(
                arch.augment_dim, features, use_bias=False, **dense
            )
        if arch.guidance:
            self.guidance = nnx.Linear(arch.nf, width, **dense)

    def __call__(self, given: Conditions) -> Float[Array, "b e"]:
        features = waves(given.c_noise, self._features)
        if given.augment is not None:
            features = features + self.augment(given.augment)
        embedding = self.dense1(nnx.silu(self.dense0(features)))
        if hasattr(self, "guidance"):
            strength = guidance_input(given.guidance, features.shape[0])
            embedding = embedding + self.guidance(self._features(strength))
        if given.labels is not None:
            embedding = embedding + self.label(given.labels)
        return embedding

    def _features(self, c_noise: Float[Array, " b"]) -> Float[Array, "b f"]:
        # Always in float32, since angles of up to 1000 lose their digits in bfloat16.
        half = self.channels // 2
        frequencies = LONGEST_PERIOD ** (-jnp.arange(half, dtype=jnp.float32) / half)
        angles = self.time_scale * c_noise[:, None] * frequencies
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class ResBlock(nnx.Module):
    """A residual block that optionally halves or doubles the resolution."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        arch: Architecture,
        rngs: nnx.Rngs,
        *,
        resample: str = "",
        index: int,
    ):
        self.resample, self.index, self.arch = resample, index, arch
        self.norm0 = _norm(c_in, arch, rngs)
        self.conv0 = _conv(c_in, c_out, 3, arch, rngs)
        self.time = nnx.Linear(
            4 * arch.nf,
            c_out * (2 if arch.scale_shift_norm else 1),
            dtype=jnp.dtype(arch.dtype),
            kernel_init=_fan_in(),
            rngs=rngs,
        )
        self.norm1 = _norm(c_out, arch, rngs)
        self.conv1 = _zero_conv(c_out, c_out, arch, rngs)
        if c_in != c_out:
            self.shortcut = _conv(c_in, c_out, 1, arch, rngs)

    def __call__(self, x: Array, embedding: Array, dropout_keys: DropoutKeys) -> Array:
        h = self.norm0(x, swish=True)
        if self.resample:
            change = _double if self.resample == "up" else _halve
            h, x = change(h), change(x)
        h = self.conv0(h)
        time = self.time(nnx.silu(embedding))
        if self.arch.scale_shift_norm:
            scale, shift = jnp.split(time, 2, axis=-1)
            h = self.norm1(h, modulation=(scale, shift), swish=True)
        else:
            h = self.norm1(h, offset=time, swish=True)
        h = dropout(h, self.arch.dropout, dropout_keys, self.index)
        return (self.shortcut(x) if hasattr(self, "shortcut") else x) + self.conv1(h)


class Attention(nnx.Module):
    """Multi-head self-attention over all pixels with a residual connection."""

    def __init__(self, channels: int, arch: Architecture, rngs: nnx.Rngs):
        dtype = jnp.dtype(arch.dtype)
        self.heads = arch.heads(channels)
        self.norm = _norm(channels, arch, rngs)
        self.qkv = nnx.Linear(
            channels, 3 * channels, dtype=dtype, kernel_init=_fan_in(), rngs=rngs
        )
        self.out = nnx.Linear(
            channels,
            channels,
            dtype=dtype,
            kernel_init=nnx.initializers.zeros,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        batch, height, width, channels = x.shape
        tokens = self.norm(x).reshape(batch, height * width, channels)
        # The channels hold the queries of all heads, then the keys, then the values.
        shape = (batch, height * width, 3, self.heads, channels // self.heads)
        query, key, value = jnp.moveaxis(self.qkv(tokens).reshape(shape), 2, 0)
        mixed = attention(query, key, value)
        return x + self.out(mixed.reshape(tokens.shape)).reshape(x.shape)


def _layer(
    spec: LayerSpec, index: int, arch: Architecture, rngs: nnx.Rngs
) -> ResBlock | Attention | nnx.Conv:
    if spec.kind == "attn":
        return Attention(spec.c_out, arch, rngs)
    if spec.kind == "block" or arch.resblock_updown:
        resample = "" if spec.kind == "block" else spec.kind
        return ResBlock(
            spec.c_in, spec.c_out, arch, rngs, resample=resample, index=index
        )
    stride = 2 if spec.kind == "down" else 1
    return _conv(spec.c_in, spec.c_out, 3, arch, rngs, stride)


class ADM(nnx.Module):
    """The U-Net F(x_in, conditions).

    The name of a block states its resolution and role (`res16_block0`, `res16_down`).
    """

    def __init__(self, arch: Architecture, rngs: nnx.Rngs):
        self.arch = arch
        self.embed = Embedding(arch, rngs)
        self.conv_in = _conv(arch.image_channels, arch.first_width, 3, arch, rngs)
        self.down: nnx.Dict[Any] = nnx.Dict()
        self.middle: nnx.Dict[Any] = nnx.Dict()
        self.up: nnx.Dict[Any] = nnx.Dict()
        for index, spec in enumerate(arch.layers):
            getattr(self, spec.part)[spec.name] = _layer(spec, index, arch, rngs)
        channels = arch.layers[-1].c_out
        self.norm_out = _norm(channels, arch, rngs)
        self.conv_out = _zero_conv(channels, arch.image_channels, arch, rngs)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        given: Conditions,
        dropout_keys: DropoutKeys = None,
    ) -> Float[Array, "b h w c"]:
        """Evaluates the network; `networks.Network` documents arguments and errors."""
        arch = self.arch
        check_conditions(given, arch)
        embedding = self.embed(given)
        h = self.conv_in(x.astype(arch.dtype))
        skips = [h]
        for spec in arch.layers:
            layer = getattr(self, spec.part)[spec.name]
            if spec.joins:
                h = jnp.concatenate([h, skips.pop()], axis=-1)
            if isinstance(layer, ResBlock):
                h = apply_layer(layer, spec, arch, h, embedding, dropout_keys)
            else:
                # A plain convolution does not double the resolution by itself.
                h = _double(h) if spec.kind == "up" else h
                h = apply_layer(layer, spec, arch, h)
            if spec.keeps:
                skips.append(h)
        return self.conv_out(self.norm_out(h, swish=True)).astype(jnp.float32)
