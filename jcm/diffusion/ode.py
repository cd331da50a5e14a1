"""Steps of the probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma."""

from collections.abc import Callable

from jaxtyping import Array, Float

from jcm.runtime.errors import JcmError

SOLVERS = ("heun", "euler")


def check_solver(solver: str, where: str) -> None:
    """Raises JcmError unless `solver` is known; `where` names the config field."""
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
    """One step from noise level sigma down to sigma_next (EDM, Algorithm 1).

    Args:
      denoise: D(x, sigma).
      x: points at noise level sigma.
      sigma: start of the step, > 0.
      sigma_next: end of the step; may be 0 for Euler, which then returns D(x, sigma).
      solver: "euler", or "heun" for the trapezoidal rule (two evaluations).
    """

    def slope(point: Array, level: Array) -> Array:
        return (point - denoise(point, level)) / level[:, None, None, None]

    length = (sigma_next - sigma)[:, None, None, None]
    first = slope(x, sigma)
    end = x + length * first
    if solver == "euler":
        return end
    return x + length / 2 * (first + slope(end, sigma_next))
