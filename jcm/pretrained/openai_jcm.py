"""Parameters of the original JAX code (openai/consistency_models_cifar10, 2023).

The original numbers each kind of layer in the order of the forward pass
(`ResnetBlockBigGANpp_7/Conv_0/kernel`), while our names state their places.
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
# Some layers of the original have other names for their leaves.
_LEAVES = {"NIN": {"kernel": "W", "bias": "b"}, "Conv2d": {"kernel": "weight"}}


def architecture(
    original: Mapping[str, np.ndarray],
    *,
    image_size: int | None = None,
    attn_resolutions: tuple[int, ...] | None = None,
) -> ncsnpp.Architecture:
    """Derives the sizes of a network from the names and shapes of its tensors.

    Args:
      original: arrays by slash-separated path, as in the original's checkpoints.
      image_size: height and width; by default 32 as in the published networks.
      attn_resolutions: image sizes with attention. By default they are derived from the
        channels of the levels; if these are equal, the second level is taken, as in the
        published networks.

    Raises:
      JcmError: if the tensors belong to another network.
    """
    if "GaussianFourierProjection_0/W" not in original:
        raise JcmError(
            "the file has no tensor 'GaussianFourierProjection_0/W': name a file of a"
            " known network"
        )
    levels = _count(original, "Downsample") + 1
    res_blocks = _blocks_per_level(original, levels)
    (nf,) = tensors.shape(original, "GaussianFourierProjection_0/W", 1)
    firsts = [level * (res_blocks + 1) for level in range(levels)]
    widths = [
        tensors.shape(original, f"ResnetBlockBigGANpp_{i}/Conv_0/bias", 1)[0]
        for i in firsts
    ]
    if image_size is None:
        image_size = 32
    if attn_resolutions is None:
        # A level with attention has one layer for each block on the way down and one on
        # the way up; the middle has one more.
        count = (_count(original, "AttnBlockpp") - 1) // (res_blocks + 1)
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


def _count(original: Mapping[str, np.ndarray], kind: str) -> int:
    """Returns the number of layers of one kind."""
    names = {name.split("/")[0] for name in original}
    return sum(name.startswith(f"{kind}_") for name in names)


def _blocks_per_level(original: Mapping[str, np.ndarray], levels: int) -> int:
    """Returns the number of residual blocks in each level, on the way down."""
    blocks = _count(original, "ResnetBlockBigGANpp")
    res_blocks, rest = divmod(blocks - 3 * levels, 2 * levels)
    if rest or res_blocks < 1:
        raise JcmError(
            f"{blocks} residual blocks do not make {levels} levels: tensors are"
            " missing, download the file again"
        )
    return res_blocks


def _attended(
    original: Mapping[str, np.ndarray], widths: list[int], count: int, each: int
) -> list[int]:
    """Returns the levels with attention.

    The channels of an attention layer determine its level. Where several levels have
    the same channels, the first level of the network is avoided, as in the published
    networks.

    Args:
      original: arrays by slash-separated path.
      widths: channels of each level.
      count: number of levels with attention.
      each: attention layers of such a level on the way down.
    """
    found: list[int] = []
    for index in range(count):
        name = f"AttnBlockpp_{index * each}/NIN_0/b"
        (width,) = tensors.shape(original, name, 1)
        first = found[-1] + 1 if found else 0
        fit = [i for i in range(first, len(widths)) if widths[i] == width]
        if not fit:
            raise JcmError(
                "the file does not state where its attention is: pass"
                " attn_resolutions=(...)"
            )
        found.append(next((i for i in fit if i), fit[0]))
    return found


def params(
    original: Mapping[str, np.ndarray], arch: ncsnpp.Architecture, template: Params
) -> Params:
    """Renames the arrays of a network.

    Args:
      original: arrays by slash-separated path, as in the original's checkpoints.
      arch: the sizes of the network, which has no classes.
      template: parameters or shapes of our network.

    Returns:
      Parameters shaped like `template`.

    Raises:
      JcmError: names an array that is missing, left over or has the wrong shape.
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
    """Returns the original's names of modules by their paths in our tree."""
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
