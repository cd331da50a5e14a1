"""Preconditioning: what a raw network F means, and how it is sampled.

A preconditioning makes a denoiser D or a consistency function f of a raw network. It
says of what kind the result is, where sampling starts, how one step is taken and which
noise levels are good. No other code asks of what class it is, so a method can bring a
preconditioning of its own.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jcm.diffusion import ode
from jcm.diffusion.schedule import Sampling, Schedule, ode_schedule
from jcm.runtime.errors import JcmError

RawNetwork = Callable[[Array, Array], Array]
"""A function of (scaled input, c_noise).

c_noise is (b,), or (b, 2) for a network with a second time.
"""
Restore = Callable[[Array], Array]
"""A function of clean images that puts back what is known of them."""


@runtime_checkable
class Precond(Protocol):
    """The interface of a preconditioning."""

    @property
    def kind(self) -> str:
        """What the denoiser is, which decides how it is sampled.

        "diffusion" is D, sampled by an ODE solver. "consistency" is f, sampled by jumps
        to clean images. "flow_map" jumps between noise levels.
        """

    @property
    def solvers(self) -> Sequence[str]:
        """The names that `Schedule.solver` may have, the default first."""

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the data."""

    @property
    def floor(self) -> float:
        """The noise level that f maps to, where the last step of jumps ends.

        Noise of level sigma that is put back has the variance sigma^2 - floor^2.
        """

    @property
    def clip(self) -> bool:
        """Whether clean images are clipped to [-1, 1] after each jump."""

    def __call__(
        self, network: RawNetwork, x: Float[Array, " b *d"], sigma: Float[Array, " b"]
    ) -> Float[Array, " b *d"]:
        """Estimates x0 from x = x0 + sigma z, in float32.

        Args:
          network: F.
          x: noisy images.
          sigma: noise level of each image, above 0.
        """

    def start(
        self, noise: Float[Array, " b *d"], sigma: Float[Array, ""]
    ) -> Float[Array, " b *d"]:
        """Returns what sampling from level sigma starts with.

        Args:
          noise: standard normal.
          sigma: the first noise level.
        """

    def step(
        self,
        network: RawNetwork,
        x: Float[Array, "b h w c"],
        sigma: Float[Array, ""],
        sigma_next: Float[Array, ""],
        noise: Float[Array, "b h w c"],
        *,
        solver: str,
        restore: Restore | None = None,
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        """Takes one step of a sampler.

        Args:
          network: F.
          x: images at noise level sigma.
          sigma: noise level of x.
          sigma_next: noise level of the result.
          noise: standard normal, for samplers that add noise.
          solver: one of `solvers`.
          restore: puts back what is known of clean images, for samplers that make them.

        Returns:
          Images at noise level sigma_next, and what to show of them: the clean images,
          or, for an ODE solver, the same images.
        """

    def schedule(
        self,
        sampling: Sampling,
        *,
        sigmas: Sequence[float] | None = None,
        steps: int | None = None,
        solver: str | None = None,
    ) -> Schedule:
        """Returns the noise levels to sample with.

        Args:
          sampling: what the config says; used where nothing else is given.
          sigmas: descending noise levels, one for each step.
          steps: number of steps, or of points of the noise grid of a diffusion model.
          solver: one of `solvers`.

        Raises:
          JcmError: for an argument of another kind of model, and for noise levels that
            are impossible.
        """

    def schedules(self, sampling: Sampling) -> list[Schedule]:
        """Returns the schedules to evaluate, of which the last is the default."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDM:
    """The denoiser D(x, sigma) of Karras et al. 2022, Table 1 ("Ours").

    D = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x, ln(sigma) / 4)

    Attributes:
      sigma_data: standard deviation of the data.
      shift: subtracted from sigma in c_skip and in the numerator of c_out, so that D is
        the identity at this level.
      floor: 0, where the ODE ends; see `Precond`.
      clip: False, since no step jumps to clean images; see `Precond`.
    """

    sigma_data: float = 0.5
    shift: float = 0.0
    floor: float = 0.0
    clip: bool = False

    kind: ClassVar[str] = "diffusion"
    solvers: ClassVar[Sequence[str]] = ode.SOLVERS

    def skip_and_out(
        self, sigma: Float[Array, "*b"]
    ) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
        """Returns (c_skip, c_out) at each noise level, exactly (1, 0) at `shift`."""
        shifted = sigma - self.shift
        c_skip = self.sigma_data**2 / (shifted**2 + self.sigma_data**2)
        c_out = shifted * self.sigma_data * (sigma**2 + self.sigma_data**2) ** -0.5
        return c_skip, c_out

    def __call__(
        self, network: RawNetwork, x: Float[Array, " b *d"], sigma: Float[Array, " b"]
    ) -> Float[Array, " b *d"]:
        """Estimates x0; see `Precond`."""
        per_example = (-1,) + (1,) * (x.ndim - 1)
        c_in = (sigma**2 + self.sigma_data**2) ** -0.5
        c_noise = jnp.log(sigma) / 4
        raw = network(c_in.reshape(per_example) * x, c_noise).astype(jnp.float32)
        c_skip, c_out = self.skip_and_out(sigma)
        return c_skip.reshape(per_example) * x + c_out.reshape(per_example) * raw

    def start(
        self, noise: Float[Array, " b *d"], sigma: Float[Array, ""]
    ) -> Float[Array, " b *d"]:
        """Returns noise of level sigma; see `Precond.start`."""
        return sigma * noise

    def step(
        self,
        network: RawNetwork,
        x: Float[Array, "b h w c"],
        sigma: Float[Array, ""],
        sigma_next: Float[Array, ""],
        noise: Float[Array, "b h w c"],
        *,
        solver: str,
        restore: Restore | None = None,
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        """Takes one step of the ODE; see `Precond.step` and `ode.step`."""
        del noise, restore
        levels = (jnp.full(x.shape[0], level) for level in (sigma, sigma_next))
        x = ode.step(
            lambda point, level: self(network, point, level), x, *levels, solver=solver
        )
        return x, x

    def schedule(
        self,
        sampling: Sampling,
        *,
        sigmas: Sequence[float] | None = None,
        steps: int | None = None,
        solver: str | None = None,
    ) -> Schedule:
        """Returns a noise grid that ends in 0; see `Precond.schedule`."""
        if sigmas is not None:
            raise JcmError("a diffusion model takes steps and solver, not sigmas")
        solver = sampling.solver if solver is None else solver
        ode.check_solver(solver, "solver")
        return ode_schedule(
            sampling.grid, sampling.steps if steps is None else steps, solver
        )

    def schedules(self, sampling: Sampling) -> list[Schedule]:
        """Returns the default alone; see `Precond.schedules`."""
        return [self.schedule(sampling)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Consistency(EDM):
    """The consistency function f(x, sigma) of Song et al. 2023, Appendix C.

    f(x, sigma_min) == x to the bit for every network.

    Attributes:
      sigma_data: standard deviation of the data.
      shift: sigma_min, where f is the identity.
      floor: see `Precond`.
      clip: see `Precond`.
      levels: number of noise levels of the grid that f was trained on, which bounds
        the number of steps.
    """

    shift: float = 0.002
    floor: float = 0.002
    clip: bool = True
    levels: int = 18

    kind: ClassVar[str] = "consistency"
    solvers: ClassVar[Sequence[str]] = ("consistency",)

    def step(
        self,
        network: RawNetwork,
        x: Float[Array, "b h w c"],
        sigma: Float[Array, ""],
        sigma_next: Float[Array, ""],
        noise: Float[Array, "b h w c"],
        *,
        solver: str,
        restore: Restore | None = None,
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        """Takes one step of multistep sampling or editing; see `Precond.step`.

        As in algorithms 1 and 4 of Song et al. 2023, the step jumps to clean images,
        clips them, restores what is known of them, and adds noise of the next level. At
        the floor no noise is added.
        """
        del solver
        x0 = self(network, x, jnp.full(x.shape[0], sigma))
        if self.clip:
            x0 = jnp.clip(x0, -1.0, 1.0)
        if restore is not None:
            x0 = restore(x0)
        # The product is exactly 0 at the floor; a difference of squares need not be.
        floor = jnp.float32(self.floor)
        variance = (sigma_next - floor) * (sigma_next + floor)
        return x0 + jnp.sqrt(jnp.maximum(variance, 0.0)) * noise, x0

    def schedule(
        self,
        sampling: Sampling,
        *,
        sigmas: Sequence[float] | None = None,
        steps: int | None = None,
        solver: str | None = None,
    ) -> Schedule:
        """Returns the levels of a few steps; see `Precond.schedule`.

        The first steps take the levels of the config, which were chosen for them. With
        more steps than that, the levels are spread evenly over the grid that f was
        trained on.
        """
        if solver is not None:
            raise JcmError(
                "solver is for diffusion models: a consistency model takes steps or"
                " sigmas"
            )
        if sigmas is not None and steps is not None:
            raise JcmError("steps and sigmas were both given: use one of them")
        if steps is None:
            chosen = sampling.sigmas if sigmas is None else sigmas
        elif not 1 <= steps < self.levels:
            raise JcmError(
                f"steps={steps} must be at least 1 and at most {self.levels - 1}, since"
                f" the model knows {self.levels} noise levels: use fewer steps, or"
                " sigmas"
            )
        elif steps <= len(sampling.sigmas):
            chosen = sampling.sigmas[:steps]
        else:
            index = np.arange(steps) * (self.levels - 1) // steps
            grid = sampling.grid.sigmas(self.levels)
            chosen = [grid[i] for i in index]
        found = Schedule(tuple(float(sigma) for sigma in chosen), self.solvers[0])
        found.check(sampling.grid.sigma_min, sampling.grid.sigma_max)
        return found

    def schedules(self, sampling: Sampling) -> list[Schedule]:
        """Returns one, two, ... steps of the config; see `Precond.schedules`."""
        longest = self.schedule(sampling)
        return [
            dataclasses.replace(longest, sigmas=longest.sigmas[: n + 1])
            for n in range(longest.nfe)
        ]
