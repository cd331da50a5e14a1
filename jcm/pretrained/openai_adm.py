"""Parameters of the original PyTorch code (openai/consistency_models, 2023).

The original numbers the blocks in order (`input_blocks.5.0.in_layers.2.weight`), while
our names state their places.
"""

import functools
from collections.abc import Mapping

import numpy as np

from jcm.networks import Params, adm
from jcm.pretrained import tensors
from jcm.runtime.errors import JcmError

State = Mapping[str, np.ndarray]

# Image sizes of the published networks by their channel multipliers.
_IMAGE_SIZES = {(1, 2, 3, 4): 64, (1, 1, 2, 3, 4): 128, (1, 1, 2, 2, 4, 4): 256}
_HEAD_CHANNELS = 64

_BLOCK = {
    "norm0": "in_layers.0",
    "conv0": "in_layers.2",
    "time": "emb_layers.1",
    "norm1": "out_layers.0",
    "conv1": "out_layers.3",
    "shortcut": "skip_connection",
}
_ATTENTION = {"norm": "norm", "qkv": "qkv", "out": "proj_out"}
_PLAIN = {"down": "op", "up": "conv"}
_PARTS = {
    "down": "input_blocks.{}.{}",
    "middle": "middle_block.{1}",
    "up": "output_blocks.{}.{}",
}


def is_adm(state: State) -> bool:
    """Returns whether a state dict looks like that of an ADM."""
    return "time_embed.0.weight" in state and "input_blocks.0.0.weight" in state


def architecture(
    state: State,
    *,
    image_size: int | None = None,
    num_heads: int | None = None,
    head_channels: int | None = None,
) -> adm.Architecture:
    """Derives the sizes of a network from the names and shapes of its tensors.

    Args:
      state: the state dict.
      image_size: height and width; by default that of the published network with the
        same channel multipliers.
      num_heads: attention heads of each layer, if `head_channels` is not given.
      head_channels: channels of each head; by default 64 as in the published networks.

    Raises:
      JcmError: if the file holds another network, or its image size is unknown.
    """
    if not is_adm(state):
        raise JcmError(
            "the file has no tensor 'time_embed.0.weight': name a file of a known"
            " network"
        )
    ups = _upsampling(state)
    levels = len(ups) + 1
    each = _blocks_per_level(state, levels)
    nf = tensors.shape(state, "time_embed.0.weight", 2)[1]
    firsts = [1 + level * each for level in range(levels)]
    widths = [
        tensors.shape(state, f"input_blocks.{i}.0.out_layers.3.bias", 1)[0]
        for i in firsts
    ]
    ch_mult = tuple(width // nf for width in widths)
    if image_size is None:
        image_size = _published_size(nf, ch_mult)
    if head_channels is None:
        head_channels = 0 if num_heads else _HEAD_CHANNELS
    label, time = "label_emb.weight", "input_blocks.1.0.emb_layers.1.bias"
    return adm.Architecture(
        image_size=image_size,
        image_channels=tensors.shape(state, "input_blocks.0.0.weight", 4)[1],
        num_classes=tensors.shape(state, label, 2)[0] if label in state else 0,
        nf=nf,
        ch_mult=ch_mult,
        num_res_blocks=each - 1,
        attn_resolutions=tuple(
            image_size // 2**level
            for level, i in enumerate(firsts)
            if f"input_blocks.{i}.1.qkv.weight" in state
        ),
        dropout=0.0,
        dtype="float32",
        remat=(),
        num_heads=num_heads or 0,
        head_channels=head_channels,
        time_scale=1000.0,
        scale_shift_norm=tensors.shape(state, time, 1)[0] == 2 * widths[0],
        resblock_updown=not any(name.endswith(".conv.weight") for name in ups),
    )


def _upsampling(state: State) -> list[str]:
    """Returns the names of tensors of the layers that double the resolution."""
    return [
        name
        for name in state
        if name.startswith("output_blocks.")
        and name.split(".")[2:3] != ["0"]
        and name.endswith((".in_layers.0.weight", ".conv.weight"))
    ]


def _blocks_per_level(state: State, levels: int) -> int:
    """Returns the input blocks of a level: residual blocks and one that leads to it."""
    names = {name.split(".")[1] for name in state if name.startswith("input_blocks.")}
    if len(names) % levels:
        raise JcmError(
            f"{len(names)} input blocks do not make {levels} levels: tensors are"
            " missing, download the file again"
        )
    return len(names) // levels


def _published_size(nf: int, ch_mult: tuple[int, ...]) -> int:
    """Returns the image size of the published network with these multipliers."""
    if ch_mult not in _IMAGE_SIZES:
        raise JcmError(
            "the file does not state the image size of a network of"
            f" {nf} channels times {ch_mult}: pass image_size=..."
        )
    return _IMAGE_SIZES[ch_mult]


def params(state: State, arch: adm.Architecture, template: Params) -> Params:
    """Renames and transposes the tensors of a network.

    Args:
      state: the state dict.
      arch: the sizes of the network.
      template: parameters or shapes of our network.

    Raises:
      JcmError: names a tensor that is missing, left over or has the wrong shape.
    """
    name_of = functools.partial(tensors.torch_name, module_names(arch))
    return tensors.fill(template, state, name_of, tensors.channels_last)


def module_names(arch: adm.Architecture) -> dict[str, str]:
    """Returns the original's names of modules by their paths in our tree."""
    names = {
        "embed/dense0": "time_embed.0",
        "embed/dense1": "time_embed.2",
        "embed/label": "label_emb",
        "conv_in": "input_blocks.0.0",
        "norm_out": "out.0",
        "conv_out": "out.2",
    }

    places = {"down": (0, 0), "middle": (0, -1), "up": (-1, 0)}
    for spec in arch.layers:
        number, place = places[spec.part]
        # A block or a downsampling layer has a new number; other layers share it.
        begins = spec.kind in ("block", "down") and spec.part != "middle"
        places[spec.part] = (number + 1, 0) if begins else (number, place + 1)
        theirs = _PARTS[spec.part].format(*places[spec.part])
        if spec.kind == "attn":
            names |= tensors.named(spec.path, theirs, _ATTENTION)
        elif spec.kind == "block" or arch.resblock_updown:
            names |= tensors.named(spec.path, theirs, _BLOCK)
        else:
            names[spec.path] = f"{theirs}.{_PLAIN[spec.kind]}"
    return names
