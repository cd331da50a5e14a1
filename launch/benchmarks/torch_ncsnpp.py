"""NCSN++ in PyTorch, with the layers of `jcm/networks/ncsnpp.py`."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_layers import Arch, Fir, Waves, attend, pixels, tokens


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


class Embedding(nn.Module):
    """Embeds the noise level, and adds the label."""

    def __init__(self, arch: Arch):
        super().__init__()
        width = 4 * arch["nf"]
        self.waves = Waves(arch)
        self.dense0 = nn.Linear(self.waves.width, width)
        self.dense1 = nn.Linear(width, width)
        if arch["num_classes"]:
            self.label = nn.Embedding(arch["num_classes"], width)

    def forward(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        embedding = self.dense0(self.waves(c_noise))
        if labels is not None:
            embedding = embedding + self.label(labels)
        return self.dense1(F.silu(embedding))


class ResBlock(nn.Module):
    """A BigGAN residual block that optionally changes the resolution."""

    def __init__(self, c_in: int, c_out: int, arch: Arch, resample: str):
        super().__init__()
        self.norm0 = _norm(c_in)
        self.conv0 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(4 * arch["nf"], c_out)
        self.norm1 = _norm(c_out)
        self.conv1 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = (
            nn.Conv2d(c_in, c_out, 1) if c_in != c_out or resample else nn.Identity()
        )
        self.change = Fir(arch["fir_kernel"], resample) if resample else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.change(F.silu(self.norm0(x)))
        x = self.change(x)
        h = self.conv0(h) + self.time(F.silu(embedding))[:, :, None, None]
        h = self.conv1(F.silu(self.norm1(h)))
        return (self.shortcut(x) + h) * math.sqrt(0.5)


class Attention(nn.Module):
    """Single-head self-attention over all pixels with a residual connection."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _norm(channels)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = tokens(self.norm(x))
        each = (layer(h)[:, :, None] for layer in (self.query, self.key, self.value))
        h = self.out(attend(*each)[:, :, 0])
        return (x + pixels(h, x)) * math.sqrt(0.5)


class Pyramid(nn.Conv2d):
    """Halves the input by the filter and a convolution with stride 2."""

    def __init__(self, c_in: int, c_out: int, arch: Arch):
        super().__init__(c_in, c_out, 3, stride=2)
        self.filter = Fir(arch["fir_kernel"], "")

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernel = self.filter.kernel.to(x.dtype).expand(channels, -1, -1, -1)
        # The filter keeps the size but for the border that the convolution needs.
        total = kernel.shape[-1] - 2 + 2
        before, after = (total + 1) // 2, total // 2
        x = F.pad(x, (before, after, before, after))
        return super().forward(F.conv2d(x, kernel, groups=channels))


class NCSNpp(nn.Module):
    """The U-Net F(x_in, c_noise, labels)."""

    def __init__(self, arch: Arch):
        super().__init__()
        self.layers = [dict(spec) for spec in arch["layers"]]
        self.pyramids = arch["progressive_input"] == "residual"
        channels = arch["image_channels"]
        self.embed = Embedding(arch)
        self.conv_in = nn.Conv2d(channels, arch["nf"], 3, padding=1)
        self.down, self.middle, self.up = (nn.ModuleDict() for _ in range(3))
        pyramid = channels
        for spec in self.layers:
            part, c_out = getattr(self, spec["part"]), spec["c_out"]
            if spec["kind"] == "attn":
                part[spec["name"]] = Attention(c_out)
                continue
            resample = "" if spec["kind"] == "block" else spec["kind"]
            part[spec["name"]] = ResBlock(spec["c_in"], c_out, arch, resample)
            if spec["kind"] == "down" and self.pyramids:
                part[f"res{spec['size']}_pyramid"] = Pyramid(pyramid, c_out, arch)
                pyramid = c_out
        last = self.layers[-1]["c_out"]
        self.norm_out = _norm(last)
        self.conv_out = nn.Conv2d(last, channels, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            embedding = self.embed(c_noise, labels)
        pyramid, h = x, self.conv_in(x)
        skips = [h]
        for spec in self.layers:
            part = getattr(self, spec["part"])
            if spec["joins"]:
                h = torch.cat([h, skips.pop()], dim=1)
            h = part[spec["name"]](h, embedding)
            if spec["kind"] == "down" and self.pyramids:
                smaller = part[f"res{spec['size']}_pyramid"](pyramid)
                pyramid = h = (smaller + h) * math.sqrt(0.5)
            if spec["keeps"]:
                skips.append(h)
        return self.conv_out(F.silu(self.norm_out(h))).float()
