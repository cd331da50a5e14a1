"""NCSN++ (Song et al. 2021), the network of consistency models on CIFAR-10.

The variant is the one of Song et al. 2023: BigGAN residual blocks, FIR resampling, a
residual input pyramid, a Fourier time embedding and no output pyramid. With a
positional embedding, a box filter and no pyramid it is the DDPM++ of Karras et al.
2022. If there are classes, a label embedding is added to the time embedding.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jcm.networks import fir
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
    initializer,
    waves,
)
from jcm.networks.sizes import LayerSpec, UNetSizes, unet_layers
from jcm.runtime.errors import JcmError

_CHOICES = {
    "embedding_type": ("fourier", "positional"),
    "progressive_input": ("residual", "none"),
}
# A program of the filter has a part for each tap; the published networks have 4.
_MOST_TAPS = 32


@dataclasses.dataclass(frozen=True)
class Architecture(UNetSizes):
    """Sizes of an NCSN++; `sizes.UNetSizes` documents the common ones.

    Attributes:
      embedding_type: time embedding, "fourier" (random frequencies) or "positional".
      fourier_scale: standard deviation of the random frequencies.
      progressive_input: "residual" if a downsampled copy of the input is added at each
        level, or "none".
      fir_kernel: taps of the resampling filter before normalisation.
    """

    embedding_type: str
    fourier_scale: float
    progressive_input: str
    fir_kernel: tuple[float, ...]

    @functools.cached_property
    def layers(self) -> tuple[LayerSpec, ...]:
        """The layers between the first and the last; see `sizes.unet_layers`."""
        return unet_layers(self, self.nf, attends_each=False)

    def check(self) -> None:
        """Checks that the sizes are consistent.

        Raises:
          JcmError: if they are not.
        """
        super().check()
        for field, known in _CHOICES.items():
            if getattr(self, field) not in known:
                raise JcmError(
                    f"config.model.ncsnpp.{field}={getattr(self, field)!r} is unknown:"
                    f" use {' or '.join(known)}"
                )
        if not 1 <= len(self.fir_kernel) <= _MOST_TAPS:
            raise JcmError(
                f"config.model.ncsnpp.fir_kernel has {len(self.fir_kernel):,} taps: use"
                f" from 1 to {_MOST_TAPS}"
            )
        widths = {self.nf * mult for mult in self.ch_mult}
        joined = {a + b for a in widths | {self.nf} for b in widths | {self.nf}}
        for width in sorted(widths | joined | {self.nf}):
            if width < 4 or width % min(width // 4, 32):
                raise JcmError(
                    f"config.model.nf={self.nf}, ch_mult={self.ch_mult}: {width}"
                    " channels cannot be normalised in groups: use an nf that is a"
                    " multiple of 4, or of 32 if there are 128 or more channels"
                )


def _conv(
    c_in: int,
    c_out: int,
    size: int,
    arch: Architecture,
    rngs: nnx.Rngs,
    scale: float = 1.0,
) -> nnx.Conv:
    return conv(
        c_in,
        c_out,
        size,
        dtype=jnp.dtype(arch.dtype),
        kernel_init=initializer(scale),
        rngs=rngs,
    )


def _norm(channels: int, arch: Architecture, rngs: nnx.Rngs) -> GroupNorm:
    return GroupNorm(
        channels,
        groups=min(channels // 4, 32),
        epsilon=1e-6,
        dtype=arch.dtype,
        rngs=rngs,
    )


class TimeEmbedding(nnx.Module):
    """Embeds the conditions by sines and cosines and two dense layers.

    A second time input is embedded like the first, and the features are concatenated,
    as in MeanFlow (Geng et al. 2025). The description of an augmentation is added to
    the features (Karras et al. 2022, Appendix F.2), and the label and the guidance
    after the first layer.
    """

    def __init__(self, arch: Architecture, rngs: nnx.Rngs):
        width = 4 * arch.nf
        dense: dict[str, Any] = {"kernel_init": initializer(1.0), "rngs": rngs}
        self.count = arch.nf // 2
        if arch.embedding_type == "fourier":
            self.count = arch.nf
            random = jax.random.normal(rngs.params(), (arch.nf,))
            self.frequencies = nnx.Param(arch.fourier_scale * random)
        features = 2 * self.count
        self.dense0 = nnx.Linear(arch.times * features, width, **dense)
        self.dense1 = nnx.Linear(width, width, **dense)
        if arch.num_classes:
            # Unit variance, as in ADM, so that the label weighs as much as the time.
            unit = nnx.initializers.normal(1.0)
            self.label = nnx.Embed(
                arch.num_classes, width, embedding_init=unit, rngs=rngs
            )
        if arch.augment_dim:
            # Without a bias, so that zeros mean an image as it is.
            self.augment = nnx.Linear(
                arch.augment_dim, arch.times * features, use_bias=False, **dense
            )
        if arch.guidance:
            self.guidance = nnx.Linear(features, width, **dense)

    def __call__(self, given: Conditions) -> Float[Array, "b e"]:
        features = waves(given.c_noise, self._features)
        if given.augment is not None:
            features = features + self.augment(given.augment)
        embedding = self.dense0(features)
        if given.labels is not None:
            embedding = embedding + self.label(given.labels)
        if hasattr(self, "guidance"):
            strength = guidance_input(given.guidance, features.shape[0])
            embedding = embedding + self.guidance(self._features(strength))
        return self.dense1(nnx.swish(embedding))

    def _features(self, c_noise: Float[Array, " b"]) -> Float[Array, "b f"]:
        # This part is always in float32, since bfloat16 is too coarse for the angles:
        # frequencies reach +-50 and c_noise reaches +-1.6.
        if hasattr(self, "frequencies"):
            frequencies = jax.lax.stop_gradient(self.frequencies[...])
            angles = c_noise[:, None] * frequencies * 2 * jnp.pi
        else:
            exponents = jnp.linspace(0, 1, self.count, dtype=jnp.float32)
            angles = c_noise[:, None] * LONGEST_PERIOD**-exponents
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class ResBlock(nnx.Module):
    """A BigGAN residual block that optionally halves or doubles the resolution."""

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
            c_out,
            dtype=jnp.dtype(arch.dtype),
            kernel_init=initializer(1.0),
            rngs=rngs,
        )
        self.norm1 = _norm(c_out, arch, rngs)
        self.conv1 = _conv(c_out, c_out, 3, arch, rngs, scale=0.0)
        if c_in != c_out or resample:
            self.shortcut = _conv(c_in, c_out, 1, arch, rngs)

    def __call__(self, x: Array, embedding: Array, dropout_keys: DropoutKeys) -> Array:
        h = self.norm0(x, swish=True)
        if self.resample:
            change = fir.upsample if self.resample == "up" else fir.downsample
            h, x = (change(v, self.arch.fir_kernel) for v in (h, x))
        time = self.time(nnx.swish(embedding))
        h = self.norm1(self.conv0(h), offset=time, swish=True)
        h = self.conv1(dropout(h, self.arch.dropout, dropout_keys, self.index))
        if hasattr(self, "shortcut"):
            x = self.shortcut(x)
        return (x + h) / math.sqrt(2)


class Attention(nnx.Module):
    """Single-head self-attention over all pixels with a residual connection."""

    def __init__(self, channels: int, arch: Architecture, rngs: nnx.Rngs):
        dtype = jnp.dtype(arch.dtype)
        self.norm = _norm(channels, arch, rngs)

        def dense(scale: float) -> nnx.Linear:
            return nnx.Linear(
                channels,
                channels,
                dtype=dtype,
                kernel_init=initializer(scale),
                rngs=rngs,
            )

        self.query, self.key, self.value = dense(0.1), dense(0.1), dense(0.1)
        self.out = dense(0.0)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        batch, height, width, channels = x.shape
        tokens = self.norm(x).reshape(batch, height * width, 1, channels)
        mixed = attention(self.query(tokens), self.key(tokens), self.value(tokens))
        return (x + self.out(mixed).reshape(x.shape)) / math.sqrt(2)


def _layer(
    spec: LayerSpec, index: int, arch: Architecture, rngs: nnx.Rngs
) -> ResBlock | Attention:
    if spec.kind == "attn":
        return Attention(spec.c_out, arch, rngs)
    resample = "" if spec.kind == "block" else spec.kind
    return ResBlock(spec.c_in, spec.c_out, arch, rngs, resample=resample, index=index)


class NCSNpp(nnx.Module):
    """The U-Net F(x_in, conditions).

    The name of a block states its resolution and role (`res16_block0`, `res16_down`).
    """

    def __init__(self, arch: Architecture, rngs: nnx.Rngs):
        self.arch = arch
        self.embed = TimeEmbedding(arch, rngs)
        self.conv_in = _conv(arch.image_channels, arch.nf, 3, arch, rngs)
        self.down: nnx.Dict[Any] = nnx.Dict()
        self.middle: nnx.Dict[Any] = nnx.Dict()
        self.up: nnx.Dict[Any] = nnx.Dict()
        pyramid = arch.image_channels
        for index, spec in enumerate(arch.layers):
            part = getattr(self, spec.part)
            part[spec.name] = _layer(spec, index, arch, rngs)
            if spec.kind == "down" and arch.progressive_input == "residual":
                conv = _conv(pyramid, spec.c_out, 3, arch, rngs)
                part[f"res{spec.size}_pyramid"] = conv
                pyramid = spec.c_out
        channels = arch.layers[-1].c_out
        self.norm_out = _norm(channels, arch, rngs)
        self.conv_out = _conv(channels, arch.image_channels, 3, arch, rngs, scale=0.0)

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
        pyramid = x.astype(arch.dtype)
        h = self.conv_in(pyramid)
        skips = [h]
        for spec in arch.layers:
            part = getattr(self, spec.part)
            if spec.joins:
                h = jnp.concatenate([h, skips.pop()], axis=-1)
            if spec.kind == "attn":
                h = apply_layer(part[spec.name], spec, arch, h)
            else:
                h = apply_layer(part[spec.name], spec, arch, h, embedding, dropout_keys)
            if spec.kind == "down" and arch.progressive_input == "residual":
                conv = part[f"res{spec.size}_pyramid"]
                pyramid = _conv_downsample(conv, pyramid, arch)
                pyramid = h = (pyramid + h) / math.sqrt(2)
            if spec.keeps:
                skips.append(h)
        return self.conv_out(self.norm_out(h, swish=True)).astype(jnp.float32)


def _conv_downsample(conv: nnx.Conv, x: Array, arch: Architecture) -> Array:
    """Halves the resolution of the input pyramid, with the weights of `conv`."""
    kernel = conv.kernel[...].astype(arch.dtype)
    change = fir.conv_downsample(x, kernel, arch.fir_kernel)
    return change if conv.bias is None else change + conv.bias[...].astype(arch.dtype)
