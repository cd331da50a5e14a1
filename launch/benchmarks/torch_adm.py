"""ADM in PyTorch, with the layers of `jcm/networks/adm.py`."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_layers import Arch, Waves, attend, pixels, tokens


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, 32), channels, eps=1e-5)


class Embedding(nn.Module):
    """Embeds the noise level, and adds the label."""

    def __init__(self, arch: Arch):
        super().__init__()
        width = 4 * arch["nf"]
        self.waves = Waves(arch)
        self.dense0 = nn.Linear(arch["nf"], width)
        self.dense1 = nn.Linear(width, width)
        if arch["num_classes"]:
            self.label = nn.Embedding(arch["num_classes"], width)

    def forward(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        embedding = self.dense1(F.silu(self.dense0(self.waves(c_noise))))
        return embedding if labels is None else embedding + self.label(labels)


class ResBlock(nn.Module):
    """A residual block that optionally halves or doubles the resolution."""

    def __init__(self, c_in: int, c_out: int, arch: Arch, resample: str):
        super().__init__()
        self.resample, self.modulates = resample, arch["scale_shift_norm"]
        self.norm0 = _norm(c_in)
        self.conv0 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(4 * arch["nf"], c_out * (2 if self.modulates else 1))
        self.norm1 = _norm(c_out)
        self.conv1 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def _change(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return F.avg_pool2d(x, 2) if self.resample == "down" else x

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(self._change(F.silu(self.norm0(x))))
        time = self.time(F.silu(embedding))[:, :, None, None]
        if self.modulates:
            scale, shift = time.chunk(2, dim=1)
            h = self.norm1(h) * (1 + scale) + shift
        else:
            h = self.norm1(h + time)
        return self.shortcut(self._change(x)) + self.conv1(F.silu(h))


class Attention(nn.Module):
    """Multi-head self-attention over all pixels with a residual connection."""

    def __init__(self, channels: int, arch: Arch):
        super().__init__()
        self.heads = arch["num_heads"] or channels // arch["head_channels"]
        self.norm = _norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = tokens(self.norm(x))
        qkv = self.qkv(h).unflatten(-1, (3, self.heads, -1))
        return x + pixels(self.out(attend(*qkv.unbind(2)).flatten(2)), x)


class ADM(nn.Module):
    """The U-Net F(x_in, c_noise, labels); blocks change the resolution."""

    def __init__(self, arch: Arch):
        super().__init__()
        if not arch["resblock_updown"]:
            raise ValueError("only networks with resblock_updown=True are compared")
        self.layers = [dict(spec) for spec in arch["layers"]]
        channels, first = arch["image_channels"], arch["nf"] * arch["ch_mult"][0]
        self.embed = Embedding(arch)
        self.conv_in = nn.Conv2d(channels, first, 3, padding=1)
        self.down, self.middle, self.up = (nn.ModuleDict() for _ in range(3))
        for spec in self.layers:
            part, c_out = getattr(self, spec["part"]), spec["c_out"]
            resample = "" if spec["kind"] in ("block", "attn") else spec["kind"]
            part[spec["name"]] = (
                Attention(c_out, arch)
                if spec["kind"] == "attn"
                else ResBlock(spec["c_in"], c_out, arch, resample)
            )
        last = self.layers[-1]["c_out"]
        self.norm_out = _norm(last)
        self.conv_out = nn.Conv2d(last, channels, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            embedding = self.embed(c_noise, labels)
        h = self.conv_in(x)
        skips = [h]
        for spec in self.layers:
            if spec["joins"]:
                h = torch.cat([h, skips.pop()], dim=1)
            h = getattr(self, spec["part"])[spec["name"]](h, embedding)
            if spec["keeps"]:
                skips.append(h)
        return self.conv_out(F.silu(self.norm_out(h))).float()
