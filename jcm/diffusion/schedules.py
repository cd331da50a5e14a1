"""Grids of noise levels, and curricula N(k) and mu(k), as pure functions.

Noise levels descend everywhere: index 0 is sigma_max.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class KarrasGrid:
    """The rho-grid of Karras et al. 2022, eq. (5), which is uniform in sigma^(1/rho).

    Attributes:
      sigma_min: last noise level.
      sigma_max: first noise level.
      rho: how much denser the grid is at low noise levels.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __call__(
        self, index: Int[Array, "*b"], num_scales: int | Int[Array, ""]
    ) -> Float[Array, "*b"]:
        """Returns the noise level at each index; arguments may be traced.

        Args:
          index: 0 (sigma_max) to num_scales - 1 (sigma_min).
          num_scales: N, number of grid points, at least 2.

        Returns:
          Noise levels in float32.
        """
        top, bottom = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        # The last point must be sigma_min to the bit, where f(x, sigma) is x.
        level = (top + index / (num_scales - 1) * (bottom - top)) ** self.rho
        return jnp.where(index == num_scales - 1, self.sigma_min, level)

    def sigmas(self, num_scales: int) -> tuple[float, ...]:
        """Returns the whole grid, in descending order, as Python floats."""
        top, bottom = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        inner = np.linspace(top, bottom, num_scales)[1:-1] ** self.rho
        return (self.sigma_max, *inner.tolist(), self.sigma_min)


@dataclasses.dataclass(frozen=True)
class FixedScales:
    """A constant N and target EMA rate, as in consistency distillation.

    Attributes:
      num_scales: N, number of grid points.
      target_ema: mu, EMA rate of the target; 0 means that the target is the student.
    """

    num_scales: int
    target_ema: float

    @property
    def last(self) -> int:
        """N at the end of the training."""
        return self.num_scales

    def __call__(self, step: Int[Array, ""]) -> tuple[Array, Array]:
        """Returns (N, mu), which are the same at every training step."""
        del step
        return jnp.asarray(self.num_scales, jnp.int32), jnp.float32(self.target_ema)


@dataclasses.dataclass(frozen=True)
class AdaptiveScales:
    """N(k) and mu(k) of Song et al. 2023, Appendix C, as in their code.

    The paper writes mu(k) = exp(s0 ln mu0 / N(k)). Their code, which trained the
    released models, divides by N(k) - 1, and so does this: mu(0) is .81, not .90. The
    two agree to three digits after 10,000 steps.

    Attributes:
      start_scales: s0, N at the first step.
      end_scales: s1, about N at the last step.
      start_ema: mu0.
      total_steps: K, length of the curriculum in training steps.
    """

    start_scales: int
    end_scales: int
    start_ema: float
    total_steps: int

    @property
    def last(self) -> int:
        """N at the end of the training, which is s1 + 1."""
        return int(self._intervals(np.asarray([self.total_steps]))[0]) + 1

    def __call__(self, step: Int[Array, ""]) -> tuple[Array, Array]:
        """Returns (N, mu) at a training step, which may be traced.

        The steps at which N grows are computed on the host in float64. The square root
        in float32 would be off by one step at a few of them.
        """
        all_intervals = self._intervals(np.arange(self.total_steps + 1))
        # Every step at which N is larger than before, repeated for each unit of growth.
        growth = np.repeat(np.arange(1, self.total_steps + 1), np.diff(all_intervals))
        grown = jnp.searchsorted(jnp.asarray(growth), step, side="right")
        intervals = int(all_intervals[0]) + grown
        target_ema = jnp.exp(self.start_scales * math.log(self.start_ema) / intervals)
        return intervals + 1, target_ema

    def _intervals(self, step: Int[np.ndarray, " k"]) -> Int[np.ndarray, " k"]:
        """Returns N(k) - 1, computed in float64."""
        s0, s1, total = self.start_scales, self.end_scales, self.total_steps
        scales = np.sqrt(step / total * ((s1 + 1) ** 2 - s0**2) + s0**2)
        return np.maximum(np.ceil(scales - 1), 1).astype(np.int32)
