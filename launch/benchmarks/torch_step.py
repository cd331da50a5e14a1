"""The training step and the sampler of a consistency model in PyTorch.

The same work as a step of jcm: consistency distillation with a teacher, or consistency
training with an EMA target (Song et al. 2023); l2 or LPIPS; RAdam or Adam; one average
of the weights.
"""

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
import torch_layers
from torch import Tensor, nn
from torch_adm import ADM
from torch_lpips import Lpips
from torch_ncsnpp import NCSNpp

Case = dict[str, Any]
"""What is measured, as `cases.describe` writes it."""


class Denoiser(nn.Module):
    """D, or f if `shift` is sigma_min: a network with the preconditioning of EDM."""

    def __init__(self, network: nn.Module, sigma_data: float, shift: float):
        super().__init__()
        self.network, self.sigma_data = network, sigma_data
        # A tensor, so that D and f are one compiled program.
        self.register_buffer("shift", torch.tensor(shift), persistent=False)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        data, level = self.sigma_data, sigma[:, None, None, None]
        total = (level**2 + data**2).rsqrt()
        raw = self.network(total * x, sigma.log() / 4, labels)
        shifted = level - self.shift
        c_skip = data**2 / (shifted**2 + data**2)
        return c_skip * x + shifted * data * total * raw


def network(arch: torch_layers.Arch) -> nn.Module:
    """Returns a network with random weights."""
    return {"ncsnpp": NCSNpp, "adm": ADM}[arch["name"]](arch)


class Training:
    """A training with random images.

    Attributes:
      student: f, whose network is trained.
      teacher: D, or None for consistency training.
      target: f with the average of the student's weights, or the student itself.
      lpips: the perceptual distance, or None for l2.
    """

    def __init__(self, case: Case, device: str, *, channels_last: bool, compiled: bool):
        """Allocates everything.

        Args:
          case: what is measured.
          device: "cpu" or "cuda".
          channels_last: whether feature maps have channels last.
          compiled: whether the networks and the distance run under `torch.compile`.
        """
        self.case, self.device, self._steps = case, device, 0
        self.layout = torch.channels_last if channels_last else torch.contiguous_format

        def wrap(function: Any) -> Any:
            return torch.compile(function, dynamic=False) if compiled else function

        noise = case["noise"]
        data, least = noise["sigma_data"], noise["sigma_min"]

        def place(part: nn.Module) -> nn.Module:
            return part.to(device, memory_format=self.layout)

        mine = place(network(case["arch"]))
        self._trained = [p for p in mine.parameters() if p.requires_grad]
        self._average = [p.detach().clone() for p in mine.parameters()]
        self._all = [p.detach() for p in mine.parameters()]
        self._target_params: list[Tensor] = []
        self.student = self.target = place(Denoiser(mine, data, least))
        self.teacher = None
        if case["method"] == "cd":
            self.teacher = place(Denoiser(network(case["arch"]), data, 0.0))
        if case["scales"]["target_ema"] != 0:
            self.target = place(Denoiser(copy.deepcopy(mine), data, least))
            self._target_params = [p.detach() for p in self.target.parameters()]
        # One program serves all networks, since they differ in their weights alone.
        self._apply = wrap(_apply)
        self.lpips = None
        if case["metric"] == "lpips":
            self.lpips = place(Lpips(case["metric_size"])).requires_grad_(False)
        self._distance = wrap(self.lpips or _l2)
        self._optimizer = self._optimiser()
        size, count = case["arch"]["image_size"], case["batch_size"]
        shape = (count, case["arch"]["image_channels"], size, size)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        self.images = self.images.contiguous(memory_format=self.layout)
        classes = case["arch"]["num_classes"]
        self.labels = torch.randint(0, 10, (count,), device=device) if classes else None

    def _optimiser(self) -> Any:
        optim = self.case["optim"]
        found: dict[str, tuple[Any, dict[str, bool]]] = {
            "radam": (torch.optim.RAdam, {"foreach": True}),
            "adam": (torch.optim.Adam, {"fused": True}),
        }
        kind, how = found[optim["name"]]
        betas = optim["b1"], optim["b2"]
        rate = optim["learning_rate"]
        return kind(self._trained, lr=rate, betas=betas, eps=optim["eps"], **how)

    def _autocast(self) -> Any:
        low = self.case["dtype"] == "bfloat16"
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=low)

    def step(self) -> tuple[Tensor, Tensor]:
        """Takes a training step; returns the loss and the norm of the gradient."""
        num_scales, target_ema = scales(self.case["scales"], self._steps)
        images = self.images.float() / 127.5 - 1
        noise = torch.randn_like(images)
        index = torch.randint(0, num_scales - 1, (len(images),), device=self.device)
        loss = self.loss(images, noise, index, num_scales)
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in self._trained])
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        rate = self.case["average"]
        torch._foreach_lerp_(self._average, self._all, 1 - rate)
        if self._target_params:
            torch._foreach_lerp_(self._target_params, self._all, 1 - target_ema)
        self._steps += 1
        return loss.detach(), norm

    def loss(
        self, images: Tensor, noise: Tensor, index: Tensor, num_scales: int
    ) -> Tensor:
        """Returns the mean distance of f at two neighbouring points.

        Args:
          images: clean images in [-1, 1], (b, c, h, w).
          noise: standard normal.
          index: index of the noisier level on the grid.
          num_scales: number of levels.
        """
        t, t_next = (self._level(index + i, num_scales) for i in (0, 1))
        x = images + t[:, None, None, None] * noise
        with self._autocast():
            with torch.no_grad():
                x_next = images + t_next[:, None, None, None] * noise
                if self.teacher is not None:
                    x_next = self._heun(x, t, t_next)
                aim = self._apply(self.target, x_next, t_next, self.labels)
            value = self._apply(self.student, x, t, self.labels)
            return self._distance(value, aim).mean()

    def _level(self, index: Tensor, num_scales: int) -> Tensor:
        """Returns noise levels of the rho-grid; the last is sigma_min."""
        noise = self.case["noise"]
        rho = noise["rho"]
        top, bottom = (noise[k] ** (1 / rho) for k in ("sigma_max", "sigma_min"))
        level = (top + index / (num_scales - 1) * (bottom - top)) ** rho
        return torch.where(index == num_scales - 1, noise["sigma_min"], level)

    def _heun(self, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """Takes the teacher's step by Heun's method."""

        def slope(point: Tensor, level: Tensor) -> Tensor:
            clean = self._apply(self.teacher, point, level, self.labels)
            return (point - clean) / level[:, None, None, None]

        length = (t_next - t)[:, None, None, None]
        first = slope(x, t)
        return x + length / 2 * (first + slope(x + length * first, t_next))

    def sample(self, count: int, sigmas: list[float]) -> Any:
        """Samples images as a NumPy array (n, h, w, c) in [-1, 1]."""
        floor = self.case["noise"]["sigma_min"]
        arch = self.case["arch"]
        size = arch["image_size"]
        shape = (count, arch["image_channels"], size, size)
        x = torch.zeros(shape, device=self.device)
        labels = None
        if arch["num_classes"]:
            labels = torch.ones(count, dtype=torch.int64, device=self.device)
        with torch.no_grad(), self._autocast():
            for i, sigma in enumerate(sigmas):
                added = sigma if i == 0 else math.sqrt(sigma**2 - floor**2)
                x = x + added * torch.randn(shape, device=self.device)
                x = x.contiguous(memory_format=self.layout)
                level = torch.full((count,), sigma, device=self.device)
                x = self._apply(self.student, x, level, labels).clamp(-1, 1)
        return x.permute(0, 2, 3, 1).cpu().numpy()


def scales(curriculum: dict[str, Any], step: int) -> tuple[int, float]:
    """Returns N(k) and mu(k) of a curriculum, fixed or adaptive."""
    if curriculum["kind"] == "fixed":
        return curriculum["num_scales"], curriculum["target_ema"]
    s0, s1 = curriculum["start_scales"], curriculum["end_scales"]
    share = step / curriculum["total_steps"]
    square = share * ((s1 + 1) ** 2 - s0**2) + s0**2
    intervals = max(math.ceil(math.sqrt(square) - 1), 1)
    return intervals + 1, math.exp(s0 * math.log(curriculum["start_ema"]) / intervals)


def _apply(
    denoiser: nn.Module, x: Tensor, sigma: Tensor, labels: Tensor | None
) -> Tensor:
    return denoiser(x, sigma, labels)


def _l2(a: Tensor, b: Tensor) -> Tensor:
    return F.mse_loss(a, b, reduction="none").mean(dim=(1, 2, 3))
