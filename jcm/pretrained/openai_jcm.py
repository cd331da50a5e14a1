"""Parameters of the original JAX code (openai/consistency_models_cifar10, 2023).

There each kind of layer is numbered in the order in which the forward pass meets it
(`ResnetBlockBigGANpp_7/Conv_0/kernel`); here names tell the place.
"""

from collections.abc import Mapping

import numpy as np

from jcm.networks import Params, ncsnpp
from jcm.pretrained import tensors
from jcm.runtime.errors import JcmError

# The sets of weights that a checkpoint may have.
WEIGHTS = ("params_ema", "params", "target_params")
_BLOCK = {
    "norm0": "GroupNorm_0",
    "conv0": "Conv_0",
    "time": "Dense_0",
    "norm1": "GroupNorm_1",
    "conv1": "Conv_1",
    "shortcut": "Conv_2",
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


def architecture(
    original: Mapping[str, np.ndarray],
    *,
    image_size: int | None = None,
    attn_resolutions: tuple[int, ...] | None = None,
) -> ncsnpp.Architecture:
    """What names and shapes tell of a network, and what they cannot.

    Args:
      original: arrays by slash-separated path, as in the original's checkpoints.
      image_size: height and width; 32, as published, by default.
      attn_resolutions: image sizes with attention; by default the second level, as
        published, where the widths of the levels do not tell.

    Raises:
      JcmError: where the tensors are not of such a network.
    """
    if "GaussianFourierProjection_0/W" not in original:
        raise JcmError(
            "no 'GaussianFourierProjection_0/W' in the file: it is of another network"
        )
    blocks, attentions, downs = (
        len({name.split("/")[0] for name in original if name.startswith(f"{kind}_")})
        for kind in ("ResnetBlockBigGANpp", "AttnBlockpp", "Downsample")
    )
    levels = downs + 1
    res_blocks, rest = divmod(blocks - 3 * levels, 2 * levels)
    if rest or res_blocks < 1:
        raise JcmError(
            f"{blocks} residual blocks do not make {levels} levels: tensors are missing"
        )

    (nf,) = tensors.shape(original, "GaussianFourierProjection_0/W", 1)
    firsts = [level * (res_blocks + 1) for level in range(levels)]
    widths = [
        tensors.shape(original, f"ResnetBlockBigGANpp_{i}/Conv_0/bias", 1)[0]
        for i in firsts
    ]
    if image_size is None:
        image_size = 32
    if attn_resolutions is None:
        count = (attentions - 1) // (res_blocks + 1)
        attended = _attended(original, widths, count, res_blocks)
        attn_resolutions = tuple(image_size // 2**level for level in attended)
    return ncsnpp.Architecture(
        image_size=image_size,
        image_channels=tensors.shape(original, "Conv_0/kernel", 4)[2],
        num_classes=0,
        nf=nf,
        ch_mult=tuple(width // nf for width in widths),
        num_res_blocks=res_blocks,
        attn_resolutions=attn_resolutions,
        dropout=0.0,
        dtype="float32",
        remat=(),
        embedding_type="fourier",
        fourier_scale=16.0,
        progressive_input="residual",
        fir_kernel=(1.0, 3.0, 3.0, 1.0),
    )


def _attended(
    original: Mapping[str, np.ndarray], widths: list[int], count: int, each: int
) -> list[int]:
    """Levels with attention; as published not the first, where another is as wide."""
    found: list[int] = []
    for index in range(count):
        name = f"AttnBlockpp_{index * each}/NIN_0/b"
        (width,) = tensors.shape(original, name, 1)
        first = found[-1] + 1 if found else 0
        fit = [i for i in range(first, len(widths)) if widths[i] == width]
        if not fit:
            raise JcmError(
                "the file does not tell where its attention is: say"
                " attn_resolutions=(...)"
            )
        found.append(next((i for i in fit if i), fit[0]))
    return found


def params(
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

    for spec in arch.layers:
        kind, parts = "ResnetBlockBigGANpp", _BLOCK
        if spec.kind == "attn":
            kind, parts = "AttnBlockpp", _ATTENTION
        names |= tensors.named(spec.path, f"{kind}_{counts[kind]}", parts, "/")
        counts[kind] += 1
        if spec.kind == "down":
            level = arch.sizes.index(spec.size)
            pyramid = f"{spec.part}/res{spec.size}_pyramid"
            names[pyramid] = f"Downsample_{level}/Conv2d_0"
    return names
