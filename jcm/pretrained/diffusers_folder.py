"""Consistency models as folders of diffusers: `ConsistencyModelPipeline`.

model_index.json                which classes of theirs make the pipeline
unet/config.json                sizes of a UNet2DModel
unet/diffusion_pytorch_model.safetensors
scheduler/scheduler_config.json    noise levels

A UNet2DModel is an ADM where it says so in its config; NCSN++ with its input pyramid it
cannot be.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jcm.networks import Params, UNetSizes, adm
from jcm.pretrained import tensors, torch_file
from jcm.runtime import files
from jcm.runtime.errors import JcmError

_INDEX, _UNET, _SCHEDULER = "model_index.json", "unet", "scheduler"
_CONFIG, _WEIGHTS = "config.json", "diffusion_pytorch_model"
_PIPELINE, _MODEL = "ConsistencyModelPipeline", "UNet2DModel"
_SOLVER = "CMStochasticIterativeScheduler"
# A version that has all that the folder asks for.
_VERSION = "0.19.0"

_BLOCK = {
    "norm0": "norm1",
    "conv0": "conv1",
    "time": "time_emb_proj",
    "norm1": "norm2",
    "conv1": "conv2",
    "shortcut": "conv_shortcut",
}
_ATTENTION = {
    "norm": "group_norm",
    "qkv": "qkv",
    "out": "to_out.0",
}
_QKV = "qkv"  # one layer here, and after `read`; three in their files
_PARTS = {"down": "down_blocks.{}", "middle": "mid_block", "up": "up_blocks.{}"}
_NOISE = ("sigma_min", "sigma_max", "sigma_data", "rho")
_SCHEDULER_CONFIG = "scheduler_config.json"
# What a config of theirs means by saying nothing.
_DEFAULTS = {
    "act_fn": "silu",
    "add_attention": True,
    "attention_head_dim": 8,
    "attn_norm_num_groups": None,
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "out_channels": 3,
    "resnet_time_scale_shift": "default",
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "upsample_type": "conv",
}


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """What a folder holds.

    Attributes:
      arch: sizes of the network.
      tensors: of the UNet2DModel, by name.
      noise: `config.noise` as the scheduler has it; empty where there is none.
    """

    arch: adm.Architecture
    tensors: Mapping[str, np.ndarray]
    noise: dict[str, float]


def is_pipeline(path: str | os.PathLike) -> bool:
    """Whether a folder looks like a pipeline, or the network of one."""
    path = pathlib.Path(path)
    return any(
        place.is_file() for place in (path / _INDEX, path / _UNET / _CONFIG)
    ) or any(path.glob(f"{_WEIGHTS}*"))


def read(path: str | os.PathLike) -> Pipeline:
    """Reads a pipeline, or the `unet` folder of one.

    Raises:
      JcmError: for files that are missing or not whole, another pipeline, or a network
        that is no ADM.
    """
    path = pathlib.Path(path)
    noise = {}
    if (path / _INDEX).is_file():
        name = _json(path / _INDEX).get("_class_name")
        if name != _PIPELINE:
            raise JcmError(f"{path} is a {name}: only a {_PIPELINE} can be read")
        noise = _noise(path / _SCHEDULER / _SCHEDULER_CONFIG)
    if (path / _UNET / _CONFIG).is_file():
        path /= _UNET
    about = _json(path / _CONFIG)
    try:
        arch = _architecture(about)
    except JcmError as error:
        raise JcmError(f"{path / _CONFIG}: {error}") from error
    except Exception as error:  # what anybody wrote can be wrong in any way
        raise JcmError(
            f"{path / _CONFIG} does not describe a {_MODEL} ({error!r}): copy it again"
        ) from error
    return Pipeline(arch, _tensors(path), noise)


def params(found: Pipeline, template: Params) -> Params:
    """Renames and transposes the parameters of a network.

    Raises:
      JcmError: for a missing, left-over or wrongly shaped tensor, by its name.
    """
    names = _module_names(found.arch)
    merged = dict(found.tensors)
    for spec in found.arch.layers:
        if spec.kind != "attn":
            continue
        for leaf in ("weight", "bias"):
            name = f"{names[spec.path + '/qkv']}.{leaf}"
            parts = [
                tensors.take(merged, name.replace(_QKV, f"to_{letter}"))
                for letter in "qkv"
            ]
            if len({part.shape for part in parts}) > 1:
                raise JcmError(f"tensors of {name} have different shapes")
            merged[name] = np.concatenate(parts)

    def name_of(path: tensors.Path) -> str:
        *module, leaf = path
        return f"{names['/'.join(module)]}.{tensors.TORCH_LEAVES[leaf]}"

    return tensors.fill(template, merged, name_of, tensors.channels_last)


def write(
    path: str | os.PathLike,
    arch: UNetSizes,
    params: Params,
    noise: Mapping[str, float],
    card: str,
) -> None:
    """Writes a pipeline that `ConsistencyModelPipeline.from_pretrained` opens.

    Args:
      path: of the folder, new or empty.
      arch: sizes of the network.
      params: its parameters.
      noise: `config.noise`.
      card: text for people, in Markdown.

    Raises:
      JcmError: where diffusers has no such network, or the folder cannot be written.
    """
    about = _describe(arch)
    path = files.new_folder(path)
    names, flat = _module_names(arch), {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        *module, last = place = tuple(key.key for key in keys)
        array = tensors.channels_first(place, np.asarray(leaf))
        name = f"{names['/'.join(module)]}.{tensors.TORCH_LEAVES[last]}"
        if _QKV in name:
            thirds = np.split(array, 3)
            for letter, part in zip("qkv", thirds, strict=True):
                flat[name.replace(_QKV, f"to_{letter}")] = part
        else:
            flat[name] = array
    scheduler = {
        "_class_name": _SOLVER,
        "_diffusers_version": _VERSION,
        "clip_denoised": True,
        "num_train_timesteps": 40,
        "s_noise": 1.0,
        **{key: float(noise[key]) for key in _NOISE},
    }
    index = {
        "_class_name": _PIPELINE,
        "_diffusers_version": _VERSION,
        _SCHEDULER: ["diffusers", _SOLVER],
        _UNET: ["diffusers", _MODEL],
    }
    files.write_text(path / "README.md", card)
    files.write_json(path / _SCHEDULER / _SCHEDULER_CONFIG, scheduler)
    files.write_json(path / _UNET / _CONFIG, about)
    # Theirs expect to be told that the tensors were PyTorch's.
    files.write_tensors(
        path / _UNET / f"{_WEIGHTS}.safetensors", flat, {"format": "pt"}
    )
    files.write_json(path / _INDEX, index)  # the last, by which the folder is known


def _architecture(about: Mapping[str, Any]) -> adm.Architecture:
    """Sizes of the ADM that a config of theirs describes."""
    if about.get("_class_name") != _MODEL:
        raise JcmError(f"{about.get('_class_name')} is no {_MODEL}")
    about = {**_DEFAULTS, **about}
    size, widths = about["sample_size"], about["block_out_channels"]
    counts = [size, *widths, about["in_channels"], about["layers_per_block"]]
    optional = about["num_class_embeds"], about["attention_head_dim"]
    counts += [count for count in optional if count is not None]
    if any(type(count) is not int or count < 1 for count in counts):
        raise JcmError("its sizes are not all whole numbers above 0")
    arch = adm.Architecture(
        image_size=size,
        image_channels=about["in_channels"],
        num_classes=about["num_class_embeds"] or 0,
        nf=widths[0],
        ch_mult=tuple(width // widths[0] for width in widths),
        num_res_blocks=about["layers_per_block"],
        attn_resolutions=tuple(
            size // 2**level
            for level, kind in enumerate(about["down_block_types"])
            if "Attn" in kind
        ),
        dropout=0.0,
        dtype="float32",
        remat=(),
        num_heads=0 if about["attention_head_dim"] else 1,
        head_channels=about["attention_head_dim"] or 0,
        time_scale=1000.0,
        scale_shift_norm=about["resnet_time_scale_shift"] == "scale_shift",
        resblock_updown=about["downsample_type"] == "resnet",
    )
    arch.check()
    expected = _describe(arch)
    if not arch.scale_shift_norm and about["attn_norm_num_groups"] is None:
        about["attn_norm_num_groups"] = about["norm_num_groups"]  # as theirs does
    # Where nothing is resampled, at the smallest size, two kinds are the same.
    plain = ("DownBlock2D", "ResnetDownsampleBlock2D", "UpBlock2D")
    for field, last in (("down_block_types", -1), ("up_block_types", 0)):
        about[field] = list(about[field])
        if about[field][last] in (*plain, "ResnetUpsampleBlock2D"):
            if "Attn" not in expected[field][last]:
                about[field][last] = expected[field][last]
    for field, value in expected.items():
        counts = field != "dropout" and not field.startswith("_")
        if counts and about.get(field, value) != value:
            raise JcmError(f"{field}={about[field]!r} is not what an ADM has ({value})")
    return arch


def _describe(arch: UNetSizes) -> dict[str, Any]:
    """The config of a UNet2DModel.

    Raises:
      JcmError: where theirs has no such network.
    """
    if not isinstance(arch, adm.Architecture):
        raise JcmError(
            "diffusers has no NCSN++ with an input pyramid: only an ADM can go"
        )
    if any(arch.nf * mult % 32 for mult in arch.ch_mult):
        raise JcmError(
            f"diffusers normalises groups of 32 channels: nf={arch.nf} does not divide"
        )
    if arch.ch_mult[0] != 1 or arch.time_scale != 1000.0:
        raise JcmError(
            f"diffusers has no ADM with ch_mult={arch.ch_mult} and time_scale="
            f"{arch.time_scale}, but with 1 at first, and 1000"
        )
    widths = [arch.nf * mult for mult in arch.ch_mult]
    attended = [size in arch.attn_resolutions for size in arch.sizes]
    heads = {width // arch.heads(width) for width in arch.attention_widths}
    if len(heads) > 1:
        raise JcmError(
            f"diffusers has heads of one width, and not num_heads={arch.num_heads} of"
            f" {sorted(heads)} channels"
        )
    plain = {"down": "DownBlock2D", "up": "UpBlock2D"}
    if arch.resblock_updown:
        plain = {"down": "ResnetDownsampleBlock2D", "up": "ResnetUpsampleBlock2D"}
    resample = "resnet" if arch.resblock_updown else "conv"
    return {
        **_DEFAULTS,
        "_class_name": _MODEL,
        "_diffusers_version": _VERSION,
        "attention_head_dim": heads.pop(),
        "attn_norm_num_groups": 32,
        "block_out_channels": widths,
        "down_block_types": [
            "AttnDownBlock2D" if a else plain["down"] for a in attended
        ],
        "downsample_type": resample,
        "dropout": arch.dropout,
        "in_channels": arch.image_channels,
        "layers_per_block": arch.num_res_blocks,
        "num_class_embeds": arch.num_classes or None,
        "out_channels": arch.image_channels,
        "resnet_time_scale_shift": "scale_shift"
        if arch.scale_shift_norm
        else "default",
        "sample_size": arch.image_size,
        "up_block_types": [
            "AttnUpBlock2D" if a else plain["up"] for a in attended[::-1]
        ],
        "upsample_type": resample,
    }


def _module_names(arch: adm.Architecture) -> dict[str, str]:
    """Our module path -> theirs."""
    names = {
        "embed/dense0": "time_embedding.linear_1",
        "embed/dense1": "time_embedding.linear_2",
        "embed/label": "class_embedding",
        "conv_in": "conv_in",
        "norm_out": "conv_norm_out",
        "conv_out": "conv_out",
    }

    for spec in arch.layers:
        level = arch.sizes.index(spec.size)
        if spec.part == "up":
            level = len(arch.sizes) - 1 - level
        layers = {"block": "resnets", "attn": "attentions"}.get(
            spec.kind, f"{spec.kind}samplers"
        )
        theirs = f"{_PARTS[spec.part].format(level)}.{layers}.{spec.index}"
        if spec.kind == "attn":
            names |= tensors.named(spec.path, theirs, _ATTENTION)
        elif spec.kind == "block" or arch.resblock_updown:
            names |= tensors.named(spec.path, theirs, _BLOCK)
        else:
            names[spec.path] = f"{theirs}.conv"
    return names


def _tensors(folder: pathlib.Path) -> Mapping[str, np.ndarray]:
    """The weights of a `unet` folder; of several variants the one without a name."""
    found = sorted(folder.glob(f"{_WEIGHTS}*.safetensors"))
    plain = folder / f"{_WEIGHTS}.safetensors"
    if plain in found or not found:
        old = folder / f"{_WEIGHTS}.bin"
        only_old = old.exists() and not found
        return torch_file.load(old) if only_old else files.read_tensors(plain)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise JcmError(f"{folder} has {names}: keep one, or save them as {plain.name}")
    return files.read_tensors(found[0])


def _noise(path: pathlib.Path) -> dict[str, float]:
    about = _json(path)
    found = {key: about[key] for key in _NOISE if key in about}
    if any(type(value) not in (int, float) or value <= 0 for value in found.values()):
        raise JcmError(f"{path}: noise levels must be above 0: copy it again")
    return {key: float(value) for key, value in found.items()}


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise JcmError(f"cannot read {path} ({error}): copy it again") from error
    if not isinstance(found, dict):
        raise JcmError(f"{path} is a {type(found).__name__}: copy it again")
    return found
