"""Steps of the probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma."""

from collections.abc import Callable

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

    def slope(point: Array, level: Array) -> Array:
        return (point - denoise(point, level)) / level[:, None, None, None]

    length = (sigma_next - sigma)[:, None, None, None]
    first = slope(x, sigma)
    end = x + length * first
    if solver == "euler":
        return end
    return x + length / 2 * (first + slope(end, sigma_next))
