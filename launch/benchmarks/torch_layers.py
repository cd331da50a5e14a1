"""Layers of the PyTorch networks that `jcm` is compared with.

The networks have the layers, names and sizes of those in `jcm/networks`, and are
written as a PyTorch user would write them: NCHW, `nn.Conv2d`, `nn.GroupNorm` and
`scaled_dot_product_attention`. This file and its neighbours `torch_*.py` import neither
jcm nor JAX, so that they run in an environment of their own.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Arch = dict[str, Any]
"""The sizes of a network, with its layers, as `cases.describe` writes them."""

_LONGEST_PERIOD = 10_000.0


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Returns softmax attention of tokens (b, t, heads, d)."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def tokens(x: Tensor) -> Tensor:
    """Returns the pixels of (b, c, h, w) as (b, h w, c)."""
    return x.flatten(2).transpose(1, 2)


def pixels(x: Tensor, like: Tensor) -> Tensor:
    """Returns tokens (b, h w, c) as an image shaped like another."""
    return x.transpose(1, 2).reshape(like.shape)


class Fir(nn.Module):
    """Halves or doubles height and width with a separable filter, padded with zeros."""

    def __init__(self, taps: Sequence[float], resample: str):
        super().__init__()
        kernel = torch.tensor(taps, dtype=torch.float64)
        kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
        self.resample = resample
        if resample == "up":
            kernel = kernel * 4
        self.register_buffer("kernel", kernel.float()[None, None], persistent=False)
        self.pad = (len(taps) - 2) // 2

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, -1, -1, -1)
        change = F.conv_transpose2d if self.resample == "up" else F.conv2d
        return change(x, kernel, stride=2, padding=self.pad, groups=channels)


class Waves(nn.Module):
    """Sines and cosines of the noise level, in float32."""

    def __init__(self, arch: Arch):
        super().__init__()
        self.kind = arch["embedding_type"]
        self.scale = arch["time_scale"]
        nf = arch["nf"]
        if self.kind == "fourier":
            random = torch.randn(nf) * arch["fourier_scale"]
            self.frequencies = nn.Parameter(random, requires_grad=False)
            return
        # ADM's exponents stop before 1.
        ends = nf // 2 - 1 if self.kind == "positional" else nf // 2
        exponents = torch.arange(nf // 2, dtype=torch.float64) / ends
        fixed = (_LONGEST_PERIOD**-exponents).float()
        self.register_buffer("fixed", fixed, persistent=False)

    @property
    def width(self) -> int:
        """Number of features."""
        return 2 * len(self.frequencies if self.kind == "fourier" else self.fixed)

    def forward(self, c_noise: Tensor) -> Tensor:
        if self.kind == "fourier":
            angles = c_noise[:, None] * self.frequencies * (2 * math.pi)
        else:
            angles = self.scale * c_noise[:, None] * self.fixed
        sine, cosine = angles.sin(), angles.cos()
        both = [cosine, sine] if self.kind == "adm" else [sine, cosine]
        return torch.cat(both, dim=-1)


def load(network: nn.Module, arrays: dict[str, Any]) -> None:
    """Copies parameters of jcm into a network.

    Args:
      network: a network of this folder.
      arrays: NumPy arrays by their path in jcm, such as
        `down/res16_block0/conv0/kernel`.

    Raises:
      ValueError: if the names or the shapes differ.
    """
    found = {}
    for path, array in arrays.items():
        *layer, kind = path.split("/")
        tensor = torch.from_numpy(array.copy())
        if kind == "kernel":
            axes = (3, 2, 0, 1) if tensor.ndim == 4 else (1, 0)
            tensor = tensor.permute(axes)
        name = kind if kind in ("bias", "frequencies") else "weight"
        if kind == "frequencies":
            layer = [*layer, "waves"]
        found[".".join([*layer, name])] = tensor
    wanted = network.state_dict()
    if wanted.keys() != found.keys():
        raise ValueError(f"names differ: {sorted(wanted.keys() ^ found.keys())[:6]}")
    network.load_state_dict(found)
