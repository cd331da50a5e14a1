"""LPIPS of VGG16 (Zhang et al. 2018) in PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Output channels of the convolutions, by block; pooling stands between the blocks.
_BLOCKS = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)


class Lpips(nn.Module):
    """The distance of two batches of images in [-1, 1]."""

    def __init__(self, size: int):
        super().__init__()
        self.size, channels = size, 3
        self.blocks = nn.ModuleList()
        for widths in _BLOCKS:
            layers: list[nn.Module] = []
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.blocks.append(nn.Sequential(*layers))
        heads = [nn.Parameter(torch.rand(widths[-1])) for widths in _BLOCKS]
        self.heads = nn.ParameterList(heads)
        mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        for name, values in (("mean", mean), ("deviation", deviation)):
            buffer = torch.tensor(values)[:, None, None]
            self.register_buffer(name, buffer, persistent=False)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Copies the weights of torchvision's VGG16 and of the heads of LPIPS.

        Args:
          tensors: by their published names.
        """
        index = 0
        for block, head in zip(self.blocks, range(len(_BLOCKS)), strict=True):
            for layer in block:
                if isinstance(layer, nn.Conv2d):
                    layer.weight.data.copy_(tensors[f"features.{index}.weight"])
                    layer.bias.data.copy_(tensors[f"features.{index}.bias"])
                index += 1
            index += 1  # pooling
            weight = tensors[f"lin{head}.model.1.weight"]
            self.heads[head].data.copy_(weight.flatten())

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        total = torch.zeros(len(a), device=a.device)
        with torch.no_grad():
            constant = self._maps(b)
        for head, first, second in zip(
            self.heads, self._maps(a), constant, strict=True
        ):
            square = (_unit_length(first) - _unit_length(second)) ** 2
            each = (head[:, None, None] * square).sum(dim=1)
            total = total + each.mean(dim=(1, 2))
        return total

    def _maps(self, x: Tensor) -> list[Tensor]:
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        if x.shape[2] < self.size:
            x = F.interpolate(x, (self.size, self.size), mode="bilinear")
        x = (x / 2 + 0.5 - self.mean) / self.deviation
        found: list[Tensor] = []
        for block in self.blocks:
            if found:
                x = F.max_pool2d(x, 2)
            x = block(x)
            found.append(x)
        return found


def _unit_length(x: Tensor) -> Tensor:
    x = x.float()
    return x / ((x * x).sum(dim=1, keepdim=True) + 1e-20).sqrt()
