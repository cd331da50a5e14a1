"""Steps of the probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jcm.runtime.errors import JcmError

SOLVERS = ("heun", "euler")
"""The names of the solvers."""


def check_solver(solver: str, where: str) -> None:
    """Raises JcmError if a solver is unknown.

    Args:
      solver: its name.
      where: the config field or argument that names it.
    """
    if solver not in SOLVERS:
        raise JcmError(
            f"{where}={solver!r} is unknown: use one of {', '.join(SOLVERS)}"
        )


def step(
    denoise: Callable[[Array, Array], Array],
    x: Float[Array, "b h w c"],
    sigma: Float[Array, " b"],
    sigma_next: Float[Array, " b"],
    *,
    solver: str,
) -> Float[Array, "b h w c"]:
    """Takes one step from noise level sigma to sigma_next.

    Karras et al. 2022, Algorithm 1, without its noise.

    Args:
      denoise: D(x, sigma).
      x: points at noise level sigma.
      sigma: noise level at the start of the step, above 0.
      sigma_next: noise level at its end. It may be 0 for Euler's method, which then
        returns D(x, sigma).
      solver: "euler", or "heun" for the trapezoidal rule (two evaluations).

    Returns:
      Points at noise level sigma_next.
    """
    length = (sigma_next - sigma)[:, None, None, None]

    def advance(point: Array, level: Array) -> tuple[Array, Array]:
        slope = (point - denoise(point, level)) / level[:, None, None, None]
        return x + length * slope, slope

    if solver == "euler":
        return advance(x, sigma)[0]
    # A loop, so that the network is compiled once for both evaluations.
    _, slopes = lax.scan(advance, x, jnp.stack([sigma, sigma_next]))
    return x + length / 2 * (slopes[0] + slopes[1])
