"""The UNet2DModel of diffusers: its config and tensors, from and to an ADM.

A UNet2DModel is an ADM for certain values of its config. It has no input pyramid, so it
cannot be an NCSN++.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jcm.networks import Params, adm
from jcm.pretrained import tensors
from jcm.runtime.errors import JcmError

CLASS = "UNet2DModel"
# The first version of diffusers with all classes that the folder names.
VERSION = "0.19.0"

_BLOCK = {
    "norm0": "norm1",
    "conv0": "conv1",
    "time": "time_emb_proj",
    "norm1": "norm2",
    "conv1": "conv2",
    "shortcut": "conv_shortcut",
}
# The only values of these sizes that a UNet2DModel can have.
_PLAIN = {"times": 1, "augment_dim": 0, "guidance": False}
_ATTENTION = {
    "norm": "group_norm",
    "qkv": "qkv",
    "out": "to_out.0",
}
# Query, key and value are one layer here and three layers in files of diffusers.
_QKV = "qkv"
_PARTS = {"down": "down_blocks.{}", "middle": "mid_block", "up": "up_blocks.{}"}
# The values of fields that a config of diffusers does not state.
DEFAULTS = {
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


def architecture(config: Mapping[str, Any]) -> adm.Architecture:
    """Returns the sizes of the ADM that the config of a UNet2DModel describes.

    Raises:
      JcmError: if it is another class, or not an ADM.
    """
    if config.get("_class_name") != CLASS:
        raise JcmError(
            f"{config.get('_class_name')} is no {CLASS}: name another folder"
        )
    about = {**DEFAULTS, **config}
    size, widths = about["sample_size"], about["block_out_channels"]
    counts = [size, *widths, about["in_channels"], about["layers_per_block"]]
    optional = about["num_class_embeds"], about["attention_head_dim"]
    counts += [count for count in optional if count is not None]
    if any(type(count) is not int or count < 1 for count in counts):
        raise JcmError("the sizes must be whole numbers above 0: copy the file again")
    arch = adm.Architecture(
        image_size=size,
        image_channels=about["in_channels"],
        num_classes=about["num_class_embeds"] or 0,
        nf=widths[0],
        ch_mult=tuple(width // widths[0] for width in widths),
        num_res_blocks=about["layers_per_block"],
        attn_resolutions=tuple(
            size >> level
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
    _check_fields(about, arch)
    return arch


def _check_fields(about: dict[str, Any], arch: adm.Architecture) -> None:
    """Raises JcmError if a field of the config is not what this ADM has."""
    expected = config_of(arch)
    if not arch.scale_shift_norm and about["attn_norm_num_groups"] is None:
        # This is the default of diffusers in this case.
        about["attn_norm_num_groups"] = about["norm_num_groups"]
    # The blocks at the smallest size do not resample, so two of their types are the
    # same.
    plain = ("DownBlock2D", "ResnetDownsampleBlock2D", "UpBlock2D")
    for field, last in (("down_block_types", -1), ("up_block_types", 0)):
        about[field] = list(about[field])
        if about[field][last] in (*plain, "ResnetUpsampleBlock2D"):
            if "Attn" not in expected[field][last]:
                about[field][last] = expected[field][last]
    for field, value in expected.items():
        counts = field != "dropout" and not field.startswith("_")
        if counts and about.get(field, value) != value:
            raise JcmError(
                f"{field}={about[field]!r} is not supported: an ADM has {value!r}"
            )


def config_of(arch: adm.Architecture) -> dict[str, Any]:
    """Returns the config of a UNet2DModel.

    Raises:
      JcmError: if diffusers has no such network.
    """
    if any(arch.nf * mult % 32 for mult in arch.ch_mult):
        raise JcmError(
            f"a {CLASS} has channels divisible by 32, not those of nf={arch.nf}: use"
            " another format"
        )
    if arch.ch_mult[0] != 1 or arch.time_scale != 1000.0:
        raise JcmError(
            f"a {CLASS} has a ch_mult that begins with 1 and time_scale=1000.0, not"
            f" ch_mult={arch.ch_mult} and time_scale={arch.time_scale}: use another"
            " format"
        )
    widths = [arch.nf * mult for mult in arch.ch_mult]
    attended = [size in arch.attn_resolutions for size in arch.sizes]
    heads = {width // arch.heads(width) for width in arch.attention_widths}
    if len(heads) > 1:
        raise JcmError(
            f"a {CLASS} has heads of one width, not num_heads={arch.num_heads} with"
            f" heads of {sorted(heads)} channels: use another format"
        )
    plain = {"down": "DownBlock2D", "up": "UpBlock2D"}
    if arch.resblock_updown:
        plain = {"down": "ResnetDownsampleBlock2D", "up": "ResnetUpsampleBlock2D"}
    resample = "resnet" if arch.resblock_updown else "conv"
    return {
        **DEFAULTS,
        "_class_name": CLASS,
        "_diffusers_version": VERSION,
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


def check(arch: adm.Architecture, config: Mapping[str, Any]) -> None:
    """Checks that the config of a UNet2DModel says all of a network.

    Args:
      arch: sizes of the network.
      config: what `config_of` makes of them.

    Raises:
      JcmError: if it does not, so that diffusers would have another network.
    """
    for name, plain in _PLAIN.items():
        if getattr(arch, name) != plain:
            raise JcmError(
                f"a {CLASS} has {name}={plain}, not {getattr(arch, name)}: use another"
                " format"
            )
    if arch.num_res_blocks < 1:
        raise JcmError(
            f"a {CLASS} has num_res_blocks of at least 1, not {arch.num_res_blocks}:"
            " use another format"
        )
    try:
        again = architecture(config)
    except JcmError as error:
        raise JcmError(
            f"diffusers has no such network ({error}): use another format"
        ) from error
    for name, (ours, theirs) in {
        name: (getattr(arch, name), getattr(again, name))
        for name in ("layers", "nf", "image_size", "image_channels", "num_classes")
    }.items():
        if ours != theirs:
            raise JcmError(
                f"a {CLASS} has other {name} than this network: use another format"
            )


def params(
    arch: adm.Architecture, found: Mapping[str, np.ndarray], template: Params
) -> Params:
    """Renames and transposes the tensors of a UNet2DModel.

    Args:
      arch: sizes of the network.
      found: tensors by name.
      template: parameters or shapes of our network.

    Raises:
      JcmError: names a tensor that is missing, left over or has the wrong shape.
    """
    names = _module_names(arch)
    merged = dict(found)
    for spec in arch.layers:
        if spec.kind != "attn":
            continue
        for leaf in ("weight", "bias"):
            name = f"{names[spec.path + '/qkv']}.{leaf}"
            parts = [
                tensors.take(merged, name.replace(_QKV, f"to_{letter}"))
                for letter in "qkv"
            ]
            if len({part.shape for part in parts}) > 1:
                raise JcmError(
                    f"the query, key and value of {name} have different shapes: copy"
                    " the file again"
                )
            merged[name] = np.concatenate(parts)

    name_of = functools.partial(tensors.torch_name, names)
    return tensors.fill(template, merged, name_of, tensors.channels_last)


def tensors_of(arch: adm.Architecture, params: Params) -> dict[str, np.ndarray]:
    """Converts parameters to the tensors of a UNet2DModel; the inverse of `params`."""
    names, flat = _module_names(arch), {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = tuple(key.key for key in keys)
        array = tensors.channels_first(path, np.asarray(leaf))
        name = tensors.torch_name(names, path)
        if _QKV in name:
            thirds = np.split(array, 3)
            for letter, part in zip("qkv", thirds, strict=True):
                flat[name.replace(_QKV, f"to_{letter}")] = part
        else:
            flat[name] = array
    return flat


def _module_names(arch: adm.Architecture) -> dict[str, str]:
    """Returns the names of modules in diffusers by their paths in our tree."""
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
