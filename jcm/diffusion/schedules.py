"""Noise levels and curricula as pure functions of numbers.

Sigmas descend everywhere: index 0 is sigma_max.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class KarrasGrid:
    """The rho-grid of Karras et al. 2022, eq. (5): uniform in sigma^(1/rho)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __call__(
        self, index: Int[Array, "*b"], num_scales: int | Int[Array, ""]
    ) -> Float[Array, "*b"]:
        """Noise level number `index` of `num_scales`; may be traced.

        Args:
          index: 0 (sigma_max) to num_scales - 1 (sigma_min).
          num_scales: N, the number of grid points, >= 2.

        Returns:
          Noise levels in float32.
        """
        top, bottom = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        # The last point must be sigma_min to the bit: there f(x, sigma) is x.
        level = (top + index / (num_scales - 1) * (bottom - top)) ** self.rho
        return jnp.where(index == num_scales - 1, self.sigma_min, level)

    def sigmas(self, num_scales: int) -> tuple[float, ...]:
        """The whole grid, descending, as Python floats."""
        top, bottom = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        inner = np.linspace(top, bottom, num_scales)[1:-1] ** self.rho
        return (self.sigma_max, *inner.tolist(), self.sigma_min)


@dataclasses.dataclass(frozen=True)
class FixedScales:
    """Constant N and target EMA rate (consistency distillation).

    Attributes:
      num_scales: N, number of grid points.
      target_ema: mu; 0 means that the target network is the student itself.
    """

    num_scales: int
    target_ema: float

    def __call__(self, step: Int[Array, ""]) -> tuple[Array, Array]:
        """(N, mu) at a training step; the same at all."""
        del step
        return jnp.asarray(self.num_scales, jnp.int32), jnp.float32(self.target_ema)


@dataclasses.dataclass(frozen=True)
class AdaptiveScales:
    """N(k) and mu(k) of Song et al. 2023, Appendix C, as their code has them.

    The paper writes mu(k) = exp(s0 ln mu0 / N(k)); the released models were trained
    with N(k) - 1 in its place, and so are ours: mu(0) is .81 and not .90. The two
    agree to three digits after 10,000 steps.

    Attributes:
      start_scales: s0, N at the first step.
      end_scales: s1, about N at the last step.
      start_ema: mu0.
      total_steps: K, length of the curriculum.
    """

    start_scales: int
    end_scales: int
    start_ema: float
    total_steps: int

    def __call__(self, step: Int[Array, ""]) -> tuple[Array, Array]:
        """(N, mu) at a training step.

        The steps at which N grows are found in float64 beforehand: the square root
        in float32 gets a few of them wrong by one.
        """
        all_intervals = self._intervals(np.arange(self.total_steps + 1))
        # Every step at which N is larger than the step before, once per unit.
        growth = np.repeat(np.arange(1, self.total_steps + 1), np.diff(all_intervals))
        grown = jnp.searchsorted(jnp.asarray(growth), step, side="right")
        intervals = int(all_intervals[0]) + grown
        target_ema = jnp.exp(self.start_scales * math.log(self.start_ema) / intervals)
        return intervals + 1, target_ema

    def _intervals(self, step: Int[np.ndarray, " k"]) -> Int[np.ndarray, " k"]:
        """N(k) - 1 in float64."""
        s0, s1, total = self.start_scales, self.end_scales, self.total_steps
        scales = np.sqrt(step / total * ((s1 + 1) ** 2 - s0**2) + s0**2)
        return np.maximum(np.ceil(scales - 1), 1).astype(np.int32)
