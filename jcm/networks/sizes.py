"""The sizes of a U-Net, their bounds, and the list of its layers."""

import dataclasses
import functools

from jcm.runtime.errors import JcmError, shown

MOST_LAYERS = 500
"""The layers of the largest network that is built; the published ones have up to 80."""

# The other sizes of the largest network. They are far above those of any model, so
# that they only stop a damaged or hostile file, before anything is built.
_MOST_LEVELS = 12
_MOST_CHANNELS = 2**16
_MOST = {
    "config.data.image_size": 4096,
    "config.data.channels": 64,
    "config.model.nf": _MOST_CHANNELS,
    "config.model.num_res_blocks": MOST_LAYERS,
    "config.model.augment_dim": _MOST_CHANNELS,
    "the number of classes": 2**20,
}


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

    @functools.cached_property
    def layers(self) -> tuple["LayerSpec", ...]:
        """The layers between the first and the last; see `unet_layers`."""
        raise NotImplementedError

    def check(self) -> None:
        """Checks that the sizes are consistent, and not those of an absurd network.

        Raises:
          JcmError: if they are not.
        """
        self._check_bounds()
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
        if len(self.layers) > MOST_LAYERS:
            raise JcmError(
                f"config.model.num_res_blocks={self.num_res_blocks} makes"
                f" {len(self.layers):,} layers: use at most {MOST_LAYERS}"
            )

    def _check_bounds(self) -> None:
        """Raises JcmError if a size is so large that even to check it takes long."""
        if len(self.ch_mult) > _MOST_LEVELS:
            raise JcmError(
                f"config.model.ch_mult has {len(self.ch_mult):,} levels: use at most"
                f" {_MOST_LEVELS}"
            )
        sizes = (
            *(self.image_size, self.image_channels, self.nf, self.num_res_blocks),
            *(self.augment_dim, self.num_classes),
        )
        for (name, most), size in zip(_MOST.items(), sizes, strict=True):
            if size > most:
                raise JcmError(f"{name} is {shown(size)}: use at most {most:,}")
        for mult in self.ch_mult:
            if not 1 <= self.nf * mult <= _MOST_CHANNELS:
                raise JcmError(
                    f"config.model.nf={self.nf}, ch_mult={self.ch_mult}: use from 1 to"
                    f" {_MOST_CHANNELS:,} channels at each level"
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
