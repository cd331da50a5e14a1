"""Parameters of NVIDIA's networks (NVlabs/edm, Karras et al. 2022), as state dicts.

DDPM++ and NCSN++ are one class there (`SongUNet`), ADM another (`DhariwalUNet`). Blocks
bear the image size at which they end (`enc.16x16_block0.conv0.weight`), and have their
attention inside.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

from jcm.errors import JcmError
from jcm.models import Levels, Params, adm, ncsnpp
from jcm.pretrained import tensors

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
_QKV = ("query", "key", "value")

_FIRST = re.compile(r"enc\.(\d+)x\1_conv\.weight")

State = Mapping[str, np.ndarray]


def is_edm(state: State) -> bool:
    """Whether a state dict looks like one of theirs, with or without its wrapper."""
    return any(name.endswith("map_layer0.weight") for name in state)


def read(state: State) -> tuple[Levels, Params]:
    """Architecture and tensors of a network, the latter under `model_names`.

    Args:
      state: the state dict, of the network or of its preconditioning around it.

    Raises:
      JcmError: where the file is not of such a network, or not whole.
    """
    state = {name.removeprefix("model."): array for name, array in state.items()}
    firsts = [name for name in state if _FIRST.fullmatch(name)]
    if len(firsts) != 1:
        raise JcmError("no 'enc...._conv.weight' in the file: it is of another network")
    image_size = int(_FIRST.fullmatch(firsts[0])[1])
    sizes = [image_size]
    while f"enc.{sizes[-1] // 2}x{sizes[-1] // 2}_down.conv0.weight" in state:
        sizes.append(sizes[-1] // 2)
    nf = _shape(state, "map_layer0.weight")[0] // 4
    widths = [
        _shape(state, f"enc.{size}x{size}_block0.conv0.bias")[0] for size in sizes
    ]
    blocks = f"enc.{image_size}x{image_size}_block"
    common = {
        "image_size": image_size,
        "image_channels": _shape(state, firsts[0])[1],
        "num_classes": _shape(state, "map_label.weight")[1]
        if "map_label.weight" in state
        else 0,
        "nf": nf,
        "ch_mult": tuple(width // nf for width in widths),
        "num_res_blocks": len(
            {name.split(".")[1] for name in state if name.startswith(blocks)}
        ),
        "attn_resolutions": tuple(
            size for size in sizes if f"enc.{size}x{size}_block0.qkv.weight" in state
        ),
        "dropout": 0.0,
        "dtype": "float32",
        "remat": False,
    }
    if "out_conv.weight" in state:
        if any(width < 128 or width % 32 for width in widths):
            # Theirs have fewer groups then.
            raise JcmError(f"an ADM of {widths} channels is none that was published")
        arch: Levels = adm.Architecture(
            **common,
            num_heads=0,
            head_channels=64,
            time_scale=1.0,
            scale_shift_norm=True,
            resblock_updown=True,
        )
    else:
        fourier = "map_noise.freqs" in state
        down = f"enc.{sizes[-1]}x{sizes[-1]}_down.conv0.resample_filter"
        taps = _shape(state, down)[-1] if len(sizes) > 1 else 2
        residual = any("_aux_residual." in name for name in state)
        arch = ncsnpp.Architecture(
            **common,
            embedding_type="fourier" if fourier else "positional",
            fourier_scale=16.0,
            progressive_input="residual" if residual else "none",
            fir_kernel=(1.0, 3.0, 3.0, 1.0) if taps == 4 else (1.0, 1.0),
        )
    return arch, _prepared(state, arch)


def params(prepared: State, arch: Levels, template: Params) -> Params:
    """Renames and transposes the parameters of one network.

    Args:
      prepared: what `read` gives.
      arch: the architecture that it gives.
      template: parameters or shapes of our network.

    Raises:
      JcmError: for a missing, left-over or wrongly shaped tensor, by its name.
    """
    modules = _module_names(arch)

    def name_of(path: tensors.Path) -> str:
        *module, leaf = path
        name = modules["/".join(module)]
        return name if leaf == "frequencies" else f"{name}.{tensors.TORCH_LEAVES[leaf]}"

    return tensors.fill(template, prepared, name_of, tensors.channels_last)


def _prepared(state: State, arch: Levels) -> dict[str, np.ndarray]:
    """What is stored otherwise there, as it is stored here."""
    made = {
        name: array
        for name, array in state.items()
        # Augmented training told the network what it did; filters are constants.
        if name != "map_augment.weight" and not name.endswith(".resample_filter")
    }
    song = isinstance(arch, ncsnpp.Architecture)
    if "map_label.weight" in made:
        table = made["map_label.weight"].T
        if song:
            # They add the label in front of the first dense layer, which is linear.
            bias = made.pop("map_label.bias", np.zeros(table.shape[1], np.float32))
            table = math.sqrt(len(table)) * table + bias
            table = table @ _tensor(made, "map_layer0.weight").T
        made["map_label.weight"] = table
    for name in [name for name in made if ".qkv." in name]:
        # Of each channel of each head the query, the key and the value.
        array = made.pop(name)
        channels = len(array) // 3
        parts = np.moveaxis(array.reshape(channels, 3, *array.shape[1:]), 1, 0)
        if song:
            made |= {
                name.replace(".qkv.", f".qkv.{part}."): values
                for part, values in zip(_QKV, parts, strict=True)
            }
        else:
            made[name] = parts.reshape(array.shape)
    return made


def _module_names(arch: Levels) -> dict[str, str]:
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

    for step in arch.steps:
        half = step.size // 2
        role = {
            "down": f"enc.{half}x{half}_down",
            "up": f"dec.{2 * step.size}x{2 * step.size}_up",
        }.get(step.kind, f"{_PARTS[step.part].format(step.size)}{step.index}")
        names |= tensors.named(
            step.path, role, attention if step.kind == "attn" else _BLOCK
        )
        if step.kind == "down":
            pyramid = f"{step.part}/res{step.size}_pyramid"
            names[pyramid] = f"enc.{half}x{half}_aux_residual"
    return names


def _tensor(state: State, name: str) -> np.ndarray:
    if name not in state:
        raise JcmError(f"tensor {name!r} is missing: the file is not whole")
    return state[name]


def _shape(state: State, name: str) -> tuple[int, ...]:
    return _tensor(state, name).shape
