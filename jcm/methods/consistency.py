"""Consistency distillation and consistency training (Song et al. 2023).

Both minimise the distance between the values of f at two neighbouring points of one
trajectory. In distillation (CD, Algorithm 2) an ODE step of a teacher finds the second
point. In training (CT, Algorithm 3) it is the same clean image with the same noise.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jcm.diffusion import ode, precond
from jcm.diffusion.denoiser import Denoiser
from jcm.diffusion.schedules import AdaptiveScales, FixedScales, KarrasGrid
from jcm.methods import distances
from jcm.methods.method import Batch, Frozen, Losses, Plain, Recipe
from jcm.networks import Network, Params
from jcm.runtime.errors import JcmError
from jcm.runtime.fields import Field

_INDEX, _NOISE, _DROPOUT = range(3)
_TEACHER = "diffusion"
# Noise levels of a grid, which is an array. Published models have at most 1,280.
_MOST = 2**20

WEIGHTINGS: dict[str, Callable[[Array], Array]] = {
    "uniform": jnp.ones_like,
    "snr": lambda t: t**-2,
    "snrp1": lambda t: t**-2 + 1,
    "truncated_snr": lambda t: jnp.maximum(t**-2, 1),
}
"""The weight lambda(t) of the noisier level t, by its name in the original code."""


@dataclasses.dataclass(frozen=True)
class Consistency(Plain):
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

    def __post_init__(self) -> None:
        if self.weighting not in WEIGHTINGS:
            raise JcmError(
                f"config.loss.weighting={self.weighting!r} is unknown: use one of "
                f"{', '.join(WEIGHTINGS)}"
            )
        ode.check_solver(self.solver, "config.loss.solver")

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
        self,
        params: Params,
        head: Params | None,
        frozen: Frozen,
        batch: Batch,
        step: Int[Array, ""],
    ) -> Losses:
        """Returns the distance of f at random pairs of points; see `Method.loss`."""
        del head
        num_scales, _ = self.scales(step)
        index = jax.vmap(lambda key: jax.random.randint(key, (), 0, num_scales - 1))(
            batch.fold(_INDEX)
        )
        noise = batch.normal(_NOISE)
        each = self.loss_at(params, frozen, batch, index, num_scales, noise)
        return Losses(each)

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
        self,
        frozen: Frozen,
        batch: Batch,
        noise: Array,
        x: Array,
        t: Array,
        t_next: Array,
    ) -> Float[Array, "b h w c"]:
        """Returns the point at t_next on the trajectory through (x, t)."""
        teacher = self.teacher
        if teacher is None:
            return batch.images + t_next[:, None, None, None] * noise

        def denoise(point: Array, level: Array) -> Array:
            return teacher(frozen.teachers[_TEACHER], point, level, batch.labels)

        point = ode.step(denoise, x, t, t_next, solver=self.solver)
        return jax.lax.stop_gradient(point)

    def curriculum(self, step: Int[Array, ""]) -> dict[str, Array]:
        """Returns N(k) and mu(k)."""
        num_scales, target_ema = self.scales(step)
        return {"num_scales": num_scales, "target_ema": target_ema}


def _denoiser(config: Any, network: Network) -> Denoiser:
    """Returns the consistency function f of a config."""
    noise = config.noise
    function = precond.Consistency(
        sigma_data=noise.sigma_data,
        shift=noise.sigma_min,
        floor=noise.sigma_min,
        levels=_scales(config).last,
    )
    return Denoiser(network, function)


def _scales(config: Any) -> FixedScales | AdaptiveScales:
    """Returns the curriculum N(k) and mu(k) of a config.

    Raises:
      JcmError: if it is unknown, or if N would fall.
    """
    loss = config.loss
    if loss.scales == "fixed":
        return FixedScales(loss.num_scales, loss.target_ema)
    if loss.scales != "adaptive":
        raise JcmError(
            f"config.loss.scales={loss.scales!r} is unknown: use fixed or adaptive"
        )
    if loss.end_scales < loss.start_scales:
        raise JcmError(
            f"config.loss.end_scales={loss.end_scales} must be at least"
            f" start_scales={loss.start_scales}"
        )
    return AdaptiveScales(
        loss.start_scales, loss.end_scales, loss.start_ema, config.train.num_steps
    )


def _distillation(
    config: Any, network: Network, teachers: Mapping[str, Denoiser]
) -> Consistency:
    """Returns CD; see `_create` for errors."""
    return _create(config, network, teachers[_TEACHER], config.loss.solver)


def _training(
    config: Any, network: Network, teachers: Mapping[str, Denoiser]
) -> Consistency:
    """Returns CT; see `_create` for errors."""
    del teachers
    return _create(config, network, None)


def _create(
    config: Any, network: Network, teacher: Denoiser | None, solver: str = "heun"
) -> Consistency:
    """Returns CD with a teacher, or CT without one.

    Raises:
      JcmError: if a setting of `config.loss` is unknown.
    """
    noise, loss = config.noise, config.loss
    return Consistency(
        denoiser=_denoiser(config, network),
        teacher=teacher,
        grid=KarrasGrid(noise.sigma_min, noise.sigma_max, noise.rho),
        scales=_scales(config),
        distance=distances.create(config),
        weighting=loss.weighting,
        solver=solver,
        stop_gradient=loss.stop_gradient,
    )


_SETTINGS = distances.SETTINGS | {
    "weighting": Field("uniform", f"weight of a pair: {', '.join(WEIGHTINGS)}"),
    "stop_gradient": Field(True, "whether the target is a constant for the gradient"),
    "scales": Field(
        "fixed",
        "curriculum: fixed (uses num_scales and target_ema) or adaptive (uses"
        " start_scales, end_scales and start_ema)",
    ),
    "num_scales": Field(18, "fixed: number of noise levels", least=2, most=_MOST),
    "target_ema": Field(
        0.0,
        "fixed: EMA rate of the target; 0 uses the student itself",
        least=0,
        below=1,
    ),
    "start_scales": Field(
        2, "adaptive: number of noise levels at the start", least=2, most=_MOST
    ),
    "end_scales": Field(
        150, "adaptive: number of noise levels at the end", least=2, most=_MOST
    ),
    "start_ema": Field(
        0.9, "adaptive: EMA rate of the target at the start", above=0, below=1
    ),
}
TRAINING = Recipe(
    create=_training,
    denoiser=_denoiser,
    settings=_SETTINGS,
    uses_num_steps=lambda config: config.loss.scales == "adaptive",
)
"""The method `ct`."""
DISTILLATION = Recipe(
    create=_distillation,
    denoiser=_denoiser,
    settings=_SETTINGS
    | {"solver": Field("heun", "ODE solver of the teacher: heun or euler")},
    teachers={_TEACHER: "diffusion"},
    begins_with=_TEACHER,
    uses_num_steps=lambda config: config.loss.scales == "adaptive",
)
"""The method `cd`."""
