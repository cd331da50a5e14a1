"""Parameters of NVIDIA's networks (NVlabs/edm, Karras et al. 2022), as state dicts.

In the original, `SongUNet` is the class of DDPM++ and NCSN++, and `DhariwalUNet` that
of ADM. The name of a block states the image size of its output
(`enc.16x16_block0.conv0.weight`), and attention is part of a block.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jcm.networks import Params, adm, ncsnpp
from jcm.pretrained import tensors
from jcm.runtime.errors import JcmError

_Architecture = adm.Architecture | ncsnpp.Architecture

_BLOCK = {
    "norm0": "norm0",
    "conv0": "conv0",
    "time": "affine",
    "norm1": "norm1",
    "conv1": "conv1",
    "shortcut": "skip",
}
_ATTENTION = {"norm": "norm2", "qkv": "qkv", "out": "proj"}
_PARTS = {
    "down": "enc.{0}x{0}_block",
    "middle": "dec.{0}x{0}_in",
    "up": "dec.{0}x{0}_block",
}
NOTES = (
    "The network is one of NVlabs/edm (Karras et al. 2022). The weights that NVIDIA"
    " published are under CC BY-NC-SA 4.0, which forbids commercial use."
)
_QKV = ("query", "key", "value")

_FIRST = re.compile(r"(model\.)?enc\.(\d+)x\2_conv\.weight")

State = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Found:
    """The content of a state dict.

    Attributes:
      arch: sizes of the network.
      tensors: tensors by their original names, with queries, keys and values in our
        order.
      prefix: "model." if the preconditioning was saved around the network, else "".
    """

    arch: _Architecture
    tensors: Mapping[str, np.ndarray]
    prefix: str


@dataclasses.dataclass(frozen=True)
class _Names:
    """Lookup of tensors by their names without the prefix."""

    state: State
    prefix: str

    def __contains__(self, name: str) -> bool:
        return f"{self.prefix}{name}" in self.state

    def shape(self, name: str, axes: int) -> tuple[int, ...]:
        return tensors.shape(self.state, f"{self.prefix}{name}", axes)


def is_edm(state: State) -> bool:
    """Returns whether a state dict looks like one of NVlabs/edm."""
    return any(name.endswith("map_layer0.weight") for name in state)


def read(state: State) -> Found:
    """Derives the sizes of a network from the names and shapes of its tensors.

    Args:
      state: the state dict of the network, or of the preconditioning around it.

    Raises:
      JcmError: if the file holds another network or is incomplete.
    """
    firsts = [found for name in state if (found := _FIRST.fullmatch(name))]
    if len(firsts) != 1:
        raise JcmError(
            "the file has no tensor 'enc...._conv.weight': name a file of a known"
            " network"
        )
    names = _Names(state, firsts[0][1] or "")
    sizes = [int(firsts[0][2])]
    while f"enc.{sizes[-1] // 2}x{sizes[-1] // 2}_down.conv0.weight" in names:
        sizes.append(sizes[-1] // 2)
    make = _adm if "out_conv.weight" in names else _ncsnpp
    arch = make(names, sizes)
    arch.check()
    return Found(arch, _prepared(state, arch, names.prefix), names.prefix)


def _common(names: _Names, sizes: list[int]) -> dict[str, Any]:
    """Returns the fields of `UNetSizes`."""
    first = f"enc.{sizes[0]}x{sizes[0]}"
    nf = names.shape("map_layer0.weight", 2)[0] // 4
    widths = _widths(names, sizes)
    if not nf or any(width % nf for width in widths):
        raise JcmError(
            f"levels of {widths} channels belong to no known network: name another file"
        )
    block = re.compile(re.escape(f"{names.prefix}{first}_block") + r"\d+")
    labels = "map_label.weight"
    return {
        "image_size": sizes[0],
        "image_channels": names.shape(f"{first}_conv.weight", 4)[1],
        "num_classes": names.shape(labels, 2)[1] if labels in names else 0,
        "nf": nf,
        "ch_mult": tuple(width // nf for width in widths),
        "num_res_blocks": len(
            {found[0] for name in names.state if (found := block.match(name))}
        ),
        "attn_resolutions": tuple(
            size for size in sizes if f"enc.{size}x{size}_block0.qkv.weight" in names
        ),
        "dropout": 0.0,
        "dtype": "float32",
        "remat": (),
    }


def _widths(names: _Names, sizes: list[int]) -> list[int]:
    """Returns the channels of each level."""
    return [names.shape(f"enc.{size}x{size}_block0.conv0.bias", 1)[0] for size in sizes]


def _adm(names: _Names, sizes: list[int]) -> adm.Architecture:
    common, widths = _common(names, sizes), _widths(names, sizes)
    # Narrower layers have fewer groups in the original than here.
    if any(width < 128 or width % 32 for width in widths):
        raise JcmError(
            f"an ADM of {widths} channels was never published: name another file"
        )
    return adm.Architecture(
        **common,
        num_heads=0,
        head_channels=64,
        time_scale=1.0,
        scale_shift_norm=True,
        resblock_updown=True,
    )


def _ncsnpp(names: _Names, sizes: list[int]) -> ncsnpp.Architecture:
    common, taps = _common(names, sizes), 2
    if len(sizes) > 1:
        down = f"enc.{sizes[1]}x{sizes[1]}_down"
        taps = names.shape(f"{down}.conv0.resample_filter", 4)[-1]
    residual = any("_aux_residual." in name for name in names.state)
    return ncsnpp.Architecture(
        **common,
        embedding_type="fourier" if "map_noise.freqs" in names else "positional",
        fourier_scale=16.0,
        progressive_input="residual" if residual else "none",
        fir_kernel=(1.0, 3.0, 3.0, 1.0) if taps == 4 else (1.0, 1.0),
    )


def params(found: Found, template: Params) -> Params:
    """Renames and transposes the tensors of a network.

    Args:
      found: the result of `read`.
      template: parameters or shapes of our network.

    Raises:
      JcmError: names a tensor that is missing, left over or has the wrong shape.
    """
    modules = _module_names(found.arch)

    def name_of(path: tensors.Path) -> str:
        if path[-1] == "frequencies":
            return f"{found.prefix}{modules['/'.join(path[:-1])]}"
        return f"{found.prefix}{tensors.torch_name(modules, path)}"

    return tensors.fill(template, found.tensors, name_of, tensors.channels_last)


def _prepared(state: State, arch: _Architecture, prefix: str) -> dict[str, np.ndarray]:
    """Converts the tensors that the original stores in another way.

    These are the label embedding and the queries, keys and values. Tensors without a
    counterpart here are removed.
    """
    made = {
        name: array
        for name, array in state.items()
        # The augmentation input is used only in training, and filters are constants.
        if name != f"{prefix}map_augment.weight"
        and not name.endswith(".resample_filter")
    }
    song = isinstance(arch, ncsnpp.Architecture)
    if arch.num_classes:
        table = made[f"{prefix}map_label.weight"].T
        if song:
            # The original adds the label before the first dense layer. The layer is
            # linear, so the label can be added after it.
            bias = tensors.take(made, f"{prefix}map_label.bias")
            first = made[f"{prefix}map_layer0.weight"]
            if not first.shape[1] == table.shape[1] == bias.size:
                raise JcmError(
                    f"tensor '{prefix}map_label.weight' of shape {table.T.shape} has no"
                    " place in this network: name a file of the right network"
                )
            table = (math.sqrt(len(table)) * table + bias) @ first.T
        made[f"{prefix}map_label.weight"] = table
    names = _module_names(arch)
    blocks = [
        f"{prefix}{names[spec.path + '/out']}"
        for spec in arch.layers
        if spec.kind == "attn"
    ]
    for name in [block.replace(".proj", ".qkv") for block in blocks]:
        for leaf in ("weight", "bias"):
            # The query, key and value of each channel of each head are adjacent.
            array = tensors.take(made, f"{name}.{leaf}")
            if len(array) % 3:
                raise JcmError(
                    f"tensor '{name}.{leaf}' of shape {array.shape} is no query, key"
                    " and value: name a file of the right network"
                )
            parts = np.moveaxis(array.reshape(-1, 3, *array.shape[1:]), 1, 0)
            if song:
                for part, values in zip(_QKV, parts, strict=True):
                    made[f"{name}.{part}.{leaf}"] = values
            else:
                made[f"{name}.{leaf}"] = parts.reshape(array.shape)
    return made


def _module_names(arch: _Architecture) -> dict[str, str]:
    """Returns the original's names of modules by their paths in our tree."""
    song = isinstance(arch, ncsnpp.Architecture)
    size = arch.image_size
    names = {
        "embed": "map_noise.freqs",
        "embed/dense0": "map_layer0",
        "embed/dense1": "map_layer1",
        "embed/label": "map_label",
        "conv_in": f"enc.{size}x{size}_conv",
        "norm_out": f"dec.{size}x{size}_aux_norm" if song else "out_norm",
        "conv_out": f"dec.{size}x{size}_aux_conv" if song else "out_conv",
    }
    attention = _ATTENTION
    if song:
        attention = attention | {part: f"qkv.{part}" for part in _QKV}

    for spec in arch.layers:
        half = spec.size // 2
        role = {
            "down": f"enc.{half}x{half}_down",
            "up": f"dec.{2 * spec.size}x{2 * spec.size}_up",
        }.get(spec.kind, f"{_PARTS[spec.part].format(spec.size)}{spec.index}")
        names |= tensors.named(
            spec.path, role, attention if spec.kind == "attn" else _BLOCK
        )
        if spec.kind == "down":
            pyramid = f"{spec.part}/res{spec.size}_pyramid"
            names[pyramid] = f"enc.{half}x{half}_aux_residual"
    return names
