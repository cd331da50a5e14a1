"""The objects that a config describes: network, noise levels, sampling schedules."""

from collections.abc import Sequence
from typing import Any

from jcm import networks
from jcm.diffusion import schedules
from jcm.diffusion.denoiser import Denoiser
from jcm.diffusion.schedule import Schedule, ode_schedule
from jcm.networks import Network
from jcm.runtime.errors import JcmError


def network(config: Any, num_classes: int) -> Network:
    """Returns the network F of a config.

    Args:
      config: the whole config.
      num_classes: of the data set; only used if the model is class-conditional.

    Raises:
      JcmError: if the model is class-conditional but the data has no classes, or if
        `config.model` describes no network.
    """
    fields = config.model.to_dict()
    conditional = fields.pop("class_conditional")
    if conditional and num_classes < 2:
        raise JcmError(
            "config.model.class_conditional=True needs data with classes: put the"
            " pictures into sub-folders, or set it to False"
        )
    return networks.create(
        fields,
        image_size=config.data.image_size,
        image_channels=config.data.channels,
        num_classes=num_classes if conditional else 0,
    )


def grid(config: Any) -> schedules.KarrasGrid:
    """Returns the noise levels of a config."""
    noise = config.noise
    return schedules.KarrasGrid(noise.sigma_min, noise.sigma_max, noise.rho)


def schedule(
    config: Any,
    denoiser: Denoiser,
    *,
    sigmas: Sequence[float] | None = None,
    steps: int | None = None,
    solver: str | None = None,
) -> Schedule:
    """Returns the schedule that samples a model.

    Args:
      config: what is not given is taken from `config.sample`.
      denoiser: D or f.
      sigmas: consistency models: descending noise levels, one for each step.
      steps: diffusion models: number of points of the noise grid.
      solver: diffusion models: "heun" or "euler".

    Raises:
      JcmError: if an argument is for the other kind of model, or if the noise levels do
        not descend within `config.noise`.
    """
    sample, noise = config.sample, config.noise
    if denoiser.is_consistency:
        if steps is not None or solver is not None:
            raise JcmError(
                "steps and solver are for diffusion models: a consistency model"
                " takes sigmas, one for each step"
            )
        levels = sample.sigmas if sigmas is None else sigmas
        found = Schedule(tuple(float(sigma) for sigma in levels))
    else:
        if sigmas is not None:
            raise JcmError("a diffusion model takes steps and solver, not sigmas")
        found = ode_schedule(
            grid(config),
            sample.steps if steps is None else steps,
            sample.solver if solver is None else solver,
        )
    found.check(noise.sigma_min, noise.sigma_max)
    return found


def default_schedules(config: Any, denoiser: Denoiser) -> list[Schedule]:
    """Returns the schedules that a config asks for.

    Returns:
      For a consistency model, the first one, two, ... of `config.sample.sigmas`; for a
      diffusion model its ODE sampler alone. The last is the default of `schedule`.

    Raises:
      JcmError: if the noise levels do not descend within `config.noise`.
    """
    longest = schedule(config, denoiser)
    if not denoiser.is_consistency:
        return [longest]
    return [Schedule(longest.sigmas[: n + 1]) for n in range(longest.nfe)]


def schedule_with_steps(config: Any, denoiser: Denoiser, steps: int) -> Schedule:
    """Returns a schedule with a given number of steps, for either kind of model.

    Args:
      config: the whole config.
      denoiser: D or f.
      steps: of a consistency model; those that `config.sample.sigmas` does not provide
        visit points of a noise grid. For a diffusion model, points of the noise grid.

    Raises:
      JcmError: if there are too few steps.
    """
    if not denoiser.is_consistency:
        return schedule(config, denoiser, steps=steps)
    for found in default_schedules(config, denoiser):
        if found.nfe == steps:
            return found
    return schedule(config, denoiser, sigmas=grid(config).sigmas(steps + 1)[:-1])
