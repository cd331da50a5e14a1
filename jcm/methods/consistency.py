"""Consistency distillation and consistency training (Song et al. 2023).

Both minimise the distance between the values of f at two neighbouring points of one
trajectory. In distillation (CD, Algorithm 2) an ODE step of a teacher finds the second
point. In training (CT, Algorithm 3) it is the same clean image with the same noise.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jcm.diffusion import ode, precond
from jcm.diffusion.denoiser import Denoiser
from jcm.diffusion.schedules import AdaptiveScales, FixedScales, KarrasGrid
from jcm.methods import distances, edm
from jcm.methods.method import Batch, Frozen
from jcm.networks import Network, Params
from jcm.runtime.errors import JcmError

_INDEX, _NOISE, _DROPOUT = range(3)

# The weighting lambda(t) of the noisier level t of a pair, by its name in the original
# code.
WEIGHTINGS: dict[str, Callable[[Array], Array]] = {
    "uniform": jnp.ones_like,
    "snr": lambda t: t**-2,
    "snrp1": lambda t: t**-2 + 1,
    "truncated_snr": lambda t: jnp.maximum(t**-2, 1),
}


@dataclasses.dataclass(frozen=True)
class Consistency:
    """CD with a teacher, or CT without one.

    Attributes:
      denoiser: f, with `precond.Consistency`.
      teacher: D of a diffusion model, or None for CT.
      grid: noise levels.
      scales: N(k) and mu(k), the number of noise levels and the target's EMA rate.
      distance: between the two values of f.
      weighting: lambda(t) of the noisier level t; a key of `WEIGHTINGS`.
      solver: of the teacher's step, "heun" or "euler". CT does not use it: with the
        clean image in place of D, both take the same straight step.
      stop_gradient: whether the gradient treats the second value of f as a constant.

    Raises:
      JcmError: if the weighting or the solver is unknown.
    """

    denoiser: Denoiser
    teacher: Denoiser | None
    grid: KarrasGrid
    scales: FixedScales | AdaptiveScales
    distance: distances.Distance
    weighting: str = "uniform"
    solver: str = "heun"
    stop_gradient: bool = True

    def __post_init__(self):
        if self.weighting not in WEIGHTINGS:
            raise JcmError(
                f"config.loss.weighting={self.weighting!r} is unknown: use one of "
                f"{', '.join(WEIGHTINGS)}"
            )
        ode.check_solver(self.solver, "config.loss.solver")

    @property
    def needs_teacher(self) -> bool:
        """Whether this is distillation."""
        return self.teacher is not None

    @property
    def constants(self) -> Any:
        """Parameters of a perceptual distance; None for other distances."""
        return self.distance.params

    @property
    def keeps_target(self) -> bool:
        """Whether the target has its own parameters.

        With an EMA rate of 0 throughout, the target is the student.
        """
        return not (
            isinstance(self.scales, FixedScales) and self.scales.target_ema == 0
        )

    def loss(
        self, params: Params, frozen: Frozen, batch: Batch, step: Int[Array, ""]
    ) -> Float[Array, " b"]:
        """Returns the distance of f at random pairs of points; see `Method.loss`."""
        num_scales, _ = self.scales(step)
        index = jax.vmap(lambda key: jax.random.randint(key, (), 0, num_scales - 1))(
            batch.fold(_INDEX)
        )
        noise = batch.normal(_NOISE)
        return self.loss_at(params, frozen, batch, index, num_scales, noise)

    def loss_at(
        self,
        params: Params,
        frozen: Frozen,
        batch: Batch,
        index: Int[Array, " b"],
        num_scales: int | Int[Array, ""],
        noise: Float[Array, "b h w c"],
    ) -> Float[Array, " b"]:
        """Returns the loss of each example for given noise levels and noise.

        Args:
          params: the student's.
          frozen: the target's, the teacher's and the distance's.
          batch: images, labels and keys.
          index: grid index of the noisier point, 0 to num_scales - 2.
          num_scales: N, number of grid points.
          noise: standard normal.
        """
        t, t_next = (self.grid(index + i, num_scales) for i in (0, 1))
        x = batch.images + t[:, None, None, None] * noise
        x_next = self._next_point(frozen, batch, noise, x, t, t_next)
        # Student and target use the same dropout masks, as they use the same noise.
        dropout = batch.fold(_DROPOUT)
        value = self.denoiser(params, x, t, batch.labels, dropout)
        target_params = params if frozen.target is None else frozen.target
        target = self.denoiser(target_params, x_next, t_next, batch.labels, dropout)
        if self.stop_gradient:
            target = jax.lax.stop_gradient(target)
        distance = self.distance(frozen.constants, value, target)
        return WEIGHTINGS[self.weighting](t) * distance

    def _next_point(
        self, frozen: Frozen, batch: Batch, noise: Array, x: Array, t: Array, t_next
    ) -> Float[Array, "b h w c"]:
        """Returns the point at t_next on the trajectory through (x, t)."""
        if self.teacher is None:
            return batch.images + t_next[:, None, None, None] * noise

        def denoise(point: Array, level: Array) -> Array:
            return self.teacher(frozen.teacher, point, level, batch.labels)

        point = ode.step(denoise, x, t, t_next, solver=self.solver)
        return jax.lax.stop_gradient(point)

    def curriculum(self, step: Int[Array, ""]) -> dict[str, Array]:
        """Returns N(k) and mu(k)."""
        num_scales, target_ema = self.scales(step)
        return {"num_scales": num_scales, "target_ema": target_ema}


def denoiser_from_config(config: Any, network: Network) -> Denoiser:
    """Returns the consistency function f of a config."""
    noise = config.noise
    return Denoiser(network, precond.Consistency(noise.sigma_data, noise.sigma_min))


def distillation_from_config(config: Any, network: Network) -> Consistency:
    """Returns CD of a config; the teacher has the architecture of the student."""
    return _from_config(config, network, edm.denoiser_from_config(config, network))


def training_from_config(config: Any, network: Network) -> Consistency:
    """Returns CT of a config."""
    return _from_config(config, network, None)


def _from_config(
    config: Any, network: Network, teacher: Denoiser | None
) -> Consistency:
    """Returns CD with a teacher, or CT without one.

    Raises:
      JcmError: if a setting of `config.loss` is unknown.
    """
    noise, loss = config.noise, config.loss
    if loss.scales == "fixed":
        scales = FixedScales(loss.num_scales, loss.target_ema)
    elif loss.scales == "adaptive":
        scales = AdaptiveScales(
            loss.start_scales, loss.end_scales, loss.start_ema, config.train.num_steps
        )
    else:
        raise JcmError(
            f"config.loss.scales={loss.scales!r} is unknown: use fixed or adaptive"
        )
    return Consistency(
        denoiser=denoiser_from_config(config, network),
        teacher=teacher,
        grid=KarrasGrid(noise.sigma_min, noise.sigma_max, noise.rho),
        scales=scales,
        distance=distances.create(config),
        weighting=loss.weighting,
        solver=loss.solver,
        stop_gradient=loss.stop_gradient,
    )
