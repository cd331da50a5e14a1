"""ADM (Dhariwal and Nichol 2021), the network of consistency models from 64x64 on.

The variant is the one of Song et al. 2023: the noise level enters as 250 ln(sigma) (as
ln(sigma) / 4 in that of Karras et al. 2022), and the published networks resample inside
of residual blocks. Those of ImageNet scale and shift what is normalised by the
embedding, those of LSUN add it before.
"""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jcm.networks.layers import (
    GroupNorm,
    Levels,
    Step,
    attention,
    call,
    check_labels,
    dropout,
    steps,
)
from jcm.runtime.errors import JcmError

DropoutKeys = Array | None

_LONGEST_PERIOD = 10_000.0


@dataclasses.dataclass(frozen=True)
class Architecture(Levels):
    """Sizes of an ADM; see `layers.Levels` for the rest.

    Attributes:
      num_heads: of each attention layer; 0 where `head_channels` gives their number.
      head_channels: channels of each head; 0 where `num_heads` counts.
      time_scale: of the time input; 1000 as OpenAI trained, 1 as NVlabs did.
      scale_shift_norm: the embedding scales and shifts the second normalisation of a
        block, instead of being added in front of it.
      resblock_updown: residual blocks change the resolution, instead of plain layers.
    """

    num_heads: int
    head_channels: int
    time_scale: float
    scale_shift_norm: bool
    resblock_updown: bool

    @property
    def attended_widths(self) -> set[int]:
        """Channels where there is attention; the middle always has it."""
        return {step.c_out for step in self.steps if step.kind == "attn"}

    def heads(self, channels: int) -> int:
        """Attention heads of a layer of so many channels."""
        return self.num_heads or channels // self.head_channels

    @property
    def first_width(self) -> int:
        """Channels that the first convolution gives."""
        return self.nf * self.ch_mult[0]

    @functools.cached_property
    def steps(self) -> tuple[Step, ...]:
        """The layers in between; see `layers.steps`."""
        return steps(self, self.first_width, attends_each=True)

    def check(self) -> None:
        """Raises JcmError where the sizes do not fit together."""
        super().check()
        if sorted(np.sign((self.num_heads, self.head_channels))) != [0, 1]:
            raise JcmError(
                f"config.model.adm: num_heads={self.num_heads} and head_channels="
                f"{self.head_channels}: one must be above 0, the other 0"
            )
        for width in sorted(self.attended_widths):
            name = "head_channels" if self.head_channels else "num_heads"
            if width % getattr(self, name):
                raise JcmError(
                    f"config.model.adm.{name}={getattr(self, name)} does not divide"
                    f" {width} channels: choose another"
                )


def _conv(
    c_in: int, c_out: int, size: int, arch: Architecture, rngs: nnx.Rngs, stride=1
) -> nnx.Conv:
    return nnx.Conv(
        c_in,
        c_out,
        (size, size),
        strides=stride,
        padding=size // 2,
        dtype=jnp.dtype(arch.dtype),
        kernel_init=_fan_in(),
        rngs=rngs,
    )


def _fan_in() -> nnx.Initializer:
    """Uniform with variance 1 / (3 fan-in), as PyTorch starts its layers."""
    return nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _zero_conv(c_in: int, c_out: int, arch: Architecture, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        c_in,
        c_out,
        (3, 3),
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
    """Means of 2x2 pixels."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return jnp.mean(x, axis=(2, 4))


def _double(x: Float[Array, "b h w c"]) -> Float[Array, "b p q c"]:
    """Every pixel four times."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class Embedding(nnx.Module):
    """Sines of the noise level through two dense layers, plus the label."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs):
        width = 4 * arch.nf
        self.channels, self.time_scale = arch.nf, arch.time_scale
        self.dense0 = nnx.Linear(arch.nf, width, kernel_init=_fan_in(), rngs=rngs)
        self.dense1 = nnx.Linear(width, width, kernel_init=_fan_in(), rngs=rngs)
        if arch.num_classes:
            unit = nnx.initializers.normal(1.0)
            self.label = nnx.Embed(
                arch.num_classes, width, embedding_init=unit, rngs=rngs
            )

    def __call__(
        self, c_noise: Float[Array, " b"], labels: Int[Array, " b"] | None
    ) -> Float[Array, "b e"]:
        # Always float32: the angles reach 1000.
        half = self.channels // 2
        frequencies = _LONGEST_PERIOD ** (-jnp.arange(half, dtype=jnp.float32) / half)
        angles = self.time_scale * c_noise[:, None] * frequencies
        waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        embedding = self.dense1(nnx.silu(self.dense0(waves)))
        return embedding if labels is None else embedding + self.label(labels)


class ResBlock(nnx.Module):
    """Residual block, optionally halving or doubling the resolution."""

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
            scale_shift = jnp.split(time, 2, axis=-1)
            h = self.norm1(h, modulation=tuple(scale_shift), swish=True)
        else:
            h = self.norm1(h, offset=time, swish=True)
        h = dropout(h, self.arch.dropout, dropout_keys, self.index)
        return (self.shortcut(x) if hasattr(self, "shortcut") else x) + self.conv1(h)


class Attention(nnx.Module):
    """Multi-head self-attention over all pixels, with a residual connection."""

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
        # Queries of all heads come first, then keys, then values.
        shape = (batch, height * width, 3, self.heads, channels // self.heads)
        query, key, value = jnp.moveaxis(self.qkv(tokens).reshape(shape), 2, 0)
        mixed = attention(query, key, value)
        return x + self.out(mixed.reshape(tokens.shape)).reshape(x.shape)


def _layer(
    step: Step, index: int, arch: Architecture, rngs: nnx.Rngs
) -> ResBlock | Attention | nnx.Conv:
    if step.kind == "attn":
        return Attention(step.c_out, arch, rngs)
    if step.kind == "block" or arch.resblock_updown:
        resample = "" if step.kind == "block" else step.kind
        return ResBlock(
            step.c_in, step.c_out, arch, rngs, resample=resample, index=index
        )
    stride = 2 if step.kind == "down" else 1
    return _conv(step.c_in, step.c_out, 3, arch, rngs, stride)


class ADM(nnx.Module):
    """The U-Net F(x_in, c_noise, labels).

    The names of the blocks tell resolution and role (`res16_block0`, `res16_down`).
    """

    def __init__(self, arch: Architecture, rngs: nnx.Rngs):
        self.arch = arch
        self.embed = Embedding(arch, rngs)
        self.conv_in = _conv(arch.image_channels, arch.first_width, 3, arch, rngs)
        self.down, self.middle, self.up = nnx.Dict(), nnx.Dict(), nnx.Dict()
        for index, step in enumerate(arch.steps):
            getattr(self, step.part)[step.name] = _layer(step, index, arch, rngs)
        channels = arch.steps[-1].c_out
        self.norm_out = _norm(channels, arch, rngs)
        self.conv_out = _zero_conv(channels, arch.image_channels, arch, rngs)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        c_noise: Float[Array, " b"],
        labels: Int[Array, " b"] | None = None,
        dropout_keys: DropoutKeys = None,
    ) -> Float[Array, "b h w c"]:
        """Evaluates the network.

        Args:
          x: scaled noisy images.
          c_noise: time input, ln(sigma) / 4.
          labels: class of each image; None exactly when there are no classes.
          dropout_keys: a key for each image, or None to leave dropout out.

        Returns:
          The raw output, in float32.

        Raises:
          JcmError: for missing labels, or labels of an unconditional network.
        """
        arch = self.arch
        check_labels(labels, arch.num_classes)
        embedding = self.embed(c_noise, labels)
        h = self.conv_in(x.astype(arch.dtype))
        skips = [h]
        for step in arch.steps:
            layer = getattr(self, step.part)[step.name]
            if step.joins:
                h = jnp.concatenate([h, skips.pop()], axis=-1)
            if isinstance(layer, ResBlock):
                h = call(layer, step, arch, h, embedding, dropout_keys)
            else:  # a plain layer doubles nothing by itself
                h = call(layer, step, arch, _double(h) if step.kind == "up" else h)
            if step.keeps:
                skips.append(h)
        return self.conv_out(self.norm_out(h, swish=True)).astype(jnp.float32)
