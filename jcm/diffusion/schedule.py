"""A schedule: the noise levels that a sampler visits, and the solver between them."""

import dataclasses

from jcm.diffusion import ode, schedules
from jcm.runtime.errors import JcmError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What a config says about how to sample.

    Attributes:
      grid: the noise levels of the model.
      sigmas: consistency models: the level of each step.
      steps: diffusion models: number of points of the noise grid.
      solver: diffusion models: the ODE solver.
    """

    grid: schedules.KarrasGrid
    sigmas: tuple[float, ...]
    steps: int
    solver: str


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The noise levels that a sampler visits, and how it gets from one to the next.

    Attributes:
      sigmas: noise levels in descending order. Sampling starts with noise of the first.
        For an ODE solver the last may be 0.
      solver: an ODE solver, "heun" or "euler", which steps from each level to the next;
        or the name of a sampler that jumps once from every level, such as
        "consistency".
    """

    sigmas: tuple[float, ...]
    solver: str = "consistency"

    @property
    def is_ode(self) -> bool:
        """Whether the solver is one of `ode.SOLVERS`."""
        return self.solver in ode.SOLVERS

    @property
    def nfe(self) -> int:
        """Number of network evaluations for one image."""
        if not self.is_ode:
            return len(self.sigmas)
        steps = len(self.sigmas) - 1
        return 2 * steps - (self.sigmas[-1] == 0) if self.solver == "heun" else steps

    @property
    def title(self) -> str:
        """A short description for captions and tables, such as "2 steps"."""
        if not self.is_ode:
            how = "" if self.solver == "consistency" else f" by {self.solver}"
            return f"{self.nfe} step{'s' * (self.nfe > 1)}{how}"
        return f"{self.solver.capitalize()}, {self.nfe} evaluations"

    def steps(self, floor: float) -> list[tuple[float, float, str]]:
        """Returns (sigma, sigma_next, solver) of each step.

        Args:
          floor: where the last jump ends.
        """
        if not self.is_ode:
            ends = [*self.sigmas[1:], floor]
            return [
                (*pair, self.solver) for pair in zip(self.sigmas, ends, strict=True)
            ]
        # The slope of the ODE does not exist at 0, so a step to 0 is Euler's.
        return [
            (sigma, sigma_next, "euler" if sigma_next == 0 else self.solver)
            for sigma, sigma_next in zip(self.sigmas, self.sigmas[1:], strict=False)
        ]

    def check(self, sigma_min: float, sigma_max: float) -> None:
        """Checks that the noise levels descend from sigma_max at most to sigma_min.

        Raises:
          JcmError: if they do not, or if there are none.
        """
        levels = self.sigmas
        if self.is_ode and levels and levels[-1] == 0:
            levels = levels[:-1]
        if not levels:
            raise JcmError(f"sigmas={self.sigmas}: at least one noise level is needed")
        # Comparisons with NaN are false, so these conditions also reject NaN.
        if not all(a > b for a, b in zip(levels, levels[1:], strict=False)):
            raise JcmError(f"sigmas={self.sigmas} must descend")
        if not (sigma_max >= levels[0] and levels[-1] >= sigma_min):
            raise JcmError(
                f"sigmas={self.sigmas} must lie within the model's noise levels,"
                f" {sigma_min} to {sigma_max}"
            )


def ode_schedule(grid: schedules.KarrasGrid, steps: int, solver: str) -> Schedule:
    """Returns the schedule of the EDM sampler: `steps` levels of the rho-grid, then 0.

    The last step, to 0, is Euler's, so Heun needs 2 steps - 1 evaluations (Karras et
    al. 2022, Algorithm 1).

    Args:
      grid: noise levels.
      steps: number of grid points, at least 2.
      solver: "heun" or "euler".

    Raises:
      JcmError: if `steps` is below 2.
    """
    if steps < 2:
        raise JcmError(f"steps={steps} must be at least 2")
    return Schedule((*grid.sigmas(steps), 0.0), solver)
