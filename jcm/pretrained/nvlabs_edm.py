"""Parameters of NVIDIA's networks (NVlabs/edm, Karras et al. 2022), as state dicts.

DDPM++ and NCSN++ are one class there (`SongUNet`), ADM another (`DhariwalUNet`). Blocks
bear the image size at which they end (`enc.16x16_block0.conv0.weight`), and have their
attention inside.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from jcm.networks import Params, UNetSizes, adm, ncsnpp
from jcm.pretrained import tensors
from jcm.runtime.errors import JcmError

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
    " published are under CC BY-NC-SA 4.0: not for commercial use."
)
_QKV = ("query", "key", "value")

_FIRST = re.compile(r"(model\.)?enc\.(\d+)x\2_conv\.weight")

State = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Found:
    """What a state dict holds.

    Attributes:
      arch: sizes of the network.
      tensors: by their names there, but with queries, keys and values in our order.
      prefix: "model." where their preconditioning was saved around the network.
    """

    arch: UNetSizes
    tensors: Mapping[str, np.ndarray]
    prefix: str


def is_edm(state: State) -> bool:
    """Whether a state dict looks like one of theirs, with or without its wrapper."""
    return any(name.endswith("map_layer0.weight") for name in state)


def read(state: State) -> Found:
    """The network of a state dict.

    Args:
      state: the state dict, of the network or of its preconditioning around it.

    Raises:
      JcmError: where the file is not of such a network, or not whole.
    """
    firsts = [found for name in state if (found := _FIRST.fullmatch(name))]
    if len(firsts) != 1:
        raise JcmError("no 'enc...._conv.weight' in the file: it is of another network")
    prefix, image_size = firsts[0][1] or "", int(firsts[0][2])

    def shape(name: str, axes: int) -> tuple[int, ...]:
        return tensors.shape(state, f"{prefix}{name}", axes)

    def has(name: str) -> bool:
        return f"{prefix}{name}" in state

    sizes = [image_size]
    while has(f"enc.{sizes[-1] // 2}x{sizes[-1] // 2}_down.conv0.weight"):
        sizes.append(sizes[-1] // 2)
    nf = shape("map_layer0.weight", 2)[0] // 4
    widths = [shape(f"enc.{size}x{size}_block0.conv0.bias", 1)[0] for size in sizes]
    if not nf or any(width % nf for width in widths):
        raise JcmError(f"levels of {widths} channels are none of a known network")
    block = re.compile(
        re.escape(f"{prefix}enc.{image_size}x{image_size}_block") + r"\d+"
    )
    common = {
        "image_size": image_size,
        "image_channels": shape(f"enc.{image_size}x{image_size}_conv.weight", 4)[1],
        "num_classes": shape("map_label.weight", 2)[1]
        if has("map_label.weight")
        else 0,
        "nf": nf,
        "ch_mult": tuple(width // nf for width in widths),
        "num_res_blocks": len(
            {found[0] for name in state if (found := block.match(name))}
        ),
        "attn_resolutions": tuple(
            size for size in sizes if has(f"enc.{size}x{size}_block0.qkv.weight")
        ),
        "dropout": 0.0,
        "dtype": "float32",
        "remat": (),
    }
    if has("out_conv.weight"):
        if any(width < 128 or width % 32 for width in widths):
            # Theirs have fewer groups then.
            raise JcmError(f"an ADM of {widths} channels is none that was published")
        arch: UNetSizes = adm.Architecture(
            **common,
            num_heads=0,
            head_channels=64,
            time_scale=1.0,
            scale_shift_norm=True,
            resblock_updown=True,
        )
    else:
        fourier = has("map_noise.freqs")
        taps = 2
        if len(sizes) > 1:
            taps = shape(f"enc.{sizes[1]}x{sizes[1]}_down.conv0.resample_filter", 4)[-1]
        residual = any("_aux_residual." in name for name in state)
        arch = ncsnpp.Architecture(
            **common,
            embedding_type="fourier" if fourier else "positional",
            fourier_scale=16.0,
            progressive_input="residual" if residual else "none",
            fir_kernel=(1.0, 3.0, 3.0, 1.0) if taps == 4 else (1.0, 1.0),
        )
    arch.check()
    return Found(arch, _prepared(state, arch, prefix), prefix)


def params(found: Found, template: Params) -> Params:
    """Renames and transposes the parameters of one network.

    Args:
      found: what `read` gives.
      template: parameters or shapes of our network.

    Raises:
      JcmError: for a missing, left-over or wrongly shaped tensor, by its name.
    """
    modules = _module_names(found.arch)

    def name_of(path: tensors.Path) -> str:
        *module, leaf = path
        name = f"{found.prefix}{modules['/'.join(module)]}"
        return name if leaf == "frequencies" else f"{name}.{tensors.TORCH_LEAVES[leaf]}"

    return tensors.fill(template, found.tensors, name_of, tensors.channels_last)


def _prepared(state: State, arch: UNetSizes, prefix: str) -> dict[str, np.ndarray]:
    """What is stored otherwise there, as it is stored here."""
    made = {
        name: array
        for name, array in state.items()
        # Augmented training told the network what it did; filters are constants.
        if name != f"{prefix}map_augment.weight"
        and not name.endswith(".resample_filter")
    }
    song = isinstance(arch, ncsnpp.Architecture)
    if arch.num_classes:
        table = made[f"{prefix}map_label.weight"].T
        if song:
            # They add the label in front of the first dense layer, which is linear.
            bias = tensors.take(made, f"{prefix}map_label.bias")
            first = made[f"{prefix}map_layer0.weight"]
            if not first.shape[1] == table.shape[1] == bias.size:
                raise JcmError(
                    f"tensor '{prefix}map_label.weight' of shape {table.T.shape} has no"
                    " place in this network"
                )
            table = (math.sqrt(len(table)) * table + bias) @ first.T
        made[f"{prefix}map_label.weight"] = table
    names = _module_names(arch)
    blocks = [
        f"{prefix}{names[s.path + '/out']}" for s in arch.layers if s.kind == "attn"
    ]
    for name in [block.replace(".proj", ".qkv") for block in blocks]:
        for leaf in ("weight", "bias"):
            # Of each channel of each head the query, the key and the value.
            array = tensors.take(made, f"{name}.{leaf}")
            if len(array) % 3:
                raise JcmError(f"tensor '{name}.{leaf}' is no query, key and value")
            parts = np.moveaxis(array.reshape(-1, 3, *array.shape[1:]), 1, 0)
            if song:
                for part, values in zip(_QKV, parts, strict=True):
                    made[f"{name}.{part}.{leaf}"] = values
            else:
                made[f"{name}.{leaf}"] = parts.reshape(array.shape)
    return made


def _module_names(arch: UNetSizes) -> dict[str, str]:
    """Our module path -> theirs."""
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
