"""Parameters of the original JAX code (openai/consistency_models_cifar10, 2023).

There each kind of layer is numbered in the order in which the forward pass meets it
(`ResnetBlockBigGANpp_7/Conv_0/kernel`); here names tell the place.
"""

from collections.abc import Mapping

import numpy as np

from jcm.models import Params, ncsnpp
from jcm.pretrained import tensors

_BLOCK = {
    "norm0": "GroupNorm_0",
    "conv0": "Conv_0",
    "time": "Dense_0",
    "norm1": "GroupNorm_1",
    "conv1": "Conv_1",
}
_ATTENTION = {
    "norm": "GroupNorm_0",
    "query": "NIN_0",
    "key": "NIN_1",
    "value": "NIN_2",
    "out": "NIN_3",
}
# Leaves are called differently by the original's own layers.
_LEAVES = {"NIN": {"kernel": "W", "bias": "b"}, "Conv2d": {"kernel": "weight"}}


def params_from_original(
    original: Mapping[str, np.ndarray], arch: ncsnpp.Architecture, template: Params
) -> Params:
    """Renames the parameters of one network.

    Args:
      original: arrays by slash-separated path, as in the original's checkpoints.
      arch: the architecture they belong to (without classes).
      template: parameters or shapes of our network.

    Returns:
      Parameters shaped like `template`.

    Raises:
      JcmError: for a missing, left-over or wrongly shaped array, by its name.
    """
    modules = _module_names(arch)

    def name_of(path: tensors.Path) -> str:
        *module, leaf = path
        name = modules["/".join(module)]
        layer = name.rsplit("/", 1)[-1].rsplit("_", 1)[0]
        leaf = _LEAVES.get(layer, {}).get(leaf, leaf)
        return f"{name}/{leaf}".removesuffix("/frequencies")

    return tensors.fill(template, original, name_of)


def _module_names(arch: ncsnpp.Architecture) -> dict[str, str]:
    """Our module path -> the original's."""
    counts = {"ResnetBlockBigGANpp": 0, "AttnBlockpp": 0}
    names = {
        "embed": "GaussianFourierProjection_0/W",
        "embed/dense0": "Dense_0",
        "embed/dense1": "Dense_1",
        "conv_in": "Conv_0",
        "norm_out": "GroupNorm_0",
        "conv_out": "Conv_1",
    }

    def add(path: str, kind: str, parts: Mapping[str, str]) -> None:
        for ours, theirs in parts.items():
            names[f"{path}/{ours}"] = f"{kind}_{counts[kind]}/{theirs}"
        counts[kind] += 1

    def add_block(path: str) -> None:
        add(path, "ResnetBlockBigGANpp", _BLOCK | {"shortcut": "Conv_2"})

    def add_attention(path: str) -> None:
        add(path, "AttnBlockpp", _ATTENTION)

    sizes = arch.sizes
    for level, size in enumerate(sizes):
        for i in range(arch.num_res_blocks):
            add_block(f"down/res{size}_block{i}")
            if size in arch.attn_resolutions:
                add_attention(f"down/res{size}_attn{i}")
        if size != sizes[-1]:
            add_block(f"down/res{size}_down")
            names[f"down/res{size}_pyramid"] = f"Downsample_{level}/Conv2d_0"
    add_block("middle/block0")
    add_attention("middle/attn")
    add_block("middle/block1")
    for size in reversed(sizes):
        for i in range(arch.num_res_blocks + 1):
            add_block(f"up/res{size}_block{i}")
        if size in arch.attn_resolutions:
            add_attention(f"up/res{size}_attn")
        if size != sizes[0]:
            add_block(f"up/res{size}_up")
    return names
