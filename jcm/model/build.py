"""The objects that a config describes: network, noise levels, sampling schedules."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Real

from jcm import networks
from jcm.diffusion import schedules
from jcm.diffusion.denoiser import Denoiser
from jcm.diffusion.schedule import Sampling, Schedule
from jcm.networks import Network
from jcm.runtime.arguments import numbers, optional
from jcm.runtime.arrays import AnyArray, Number, Whole
from jcm.runtime.errors import JcmError, shown

# Noise levels, one for each step; a single number is one step.
Levels = Sequence[Number] | Real[AnyArray, "..."] | Number


def network(config: Any, num_classes: int, tensors: int | None = None) -> Network:
    """Returns the network F of a config.

    Args:
      config: the whole config.
      num_classes: of the data set; only used if the model is class-conditional.
      tensors: of the file that holds its parameters; None if they are not in a file.

    Raises:
      JcmError: if the model is class-conditional but the data has no classes, or if
        `config.model` describes no network, or one of more layers than tensors.
    """
    fields = config.model.to_dict()
    conditional = fields.pop("class_conditional")
    if conditional and num_classes < 2:
        raise JcmError(
            "config.model.class_conditional=True needs data with classes: put the"
            " pictures into sub-folders, pass labels, or set it to False"
        )
    arch = networks.architecture(
        fields,
        image_size=config.data.image_size,
        image_channels=config.data.channels,
        num_classes=num_classes if conditional else 0,
    )
    return (
        networks.build(arch) if tensors is None else networks.build_for(arch, tensors)
    )


def grid(config: Any) -> schedules.KarrasGrid:
    """Returns the noise levels of a config."""
    noise = config.noise
    return schedules.KarrasGrid(noise.sigma_min, noise.sigma_max, noise.rho)


def sampling(config: Any) -> Sampling:
    """Returns what a config says about how to sample."""
    sample = config.sample
    return Sampling(
        grid=grid(config),
        sigmas=tuple(sample.sigmas),
        steps=sample.steps,
        solver=sample.solver,
    )


def levels(sigmas: Levels) -> tuple[float, ...]:
    """Returns noise levels as numbers.

    Args:
      sigmas: one for each step; a single number is one step.

    Raises:
      JcmError: if they are no numbers.
    """
    array = np.atleast_1d(np.asarray(numbers("sigmas", sigmas)))
    if array.ndim != 1:
        raise JcmError(f"sigmas={shown(sigmas)}: pass one noise level for each step")
    return tuple(map(float, array))


def schedule(
    config: Any,
    denoiser: Denoiser,
    *,
    sigmas: Levels | None = None,
    steps: Whole | None = None,
    solver: str | None = None,
) -> Schedule:
    """Returns the schedule that samples a model; see `precond.Precond.schedule`.

    Args:
      config: what is not given is taken from `config.sample`.
      denoiser: D or f.
      sigmas: consistency models: descending noise levels, one for each step; a single
        number is one step.
      steps: consistency models: number of steps; diffusion models: number of points of
        the noise grid.
      solver: diffusion models: "heun" or "euler".

    Raises:
      JcmError: if an argument is for the other kind of model, or if the noise levels do
        not descend within `config.noise`.
    """
    return denoiser.precond.schedule(
        sampling(config),
        sigmas=None if sigmas is None else levels(sigmas),
        steps=optional("steps", steps),
        solver=solver,
    )


def default_schedules(config: Any, denoiser: Denoiser) -> list[Schedule]:
    """Returns the schedules that a config asks for.

    Returns:
      For a consistency model, the first one, two, ... of `config.sample.sigmas`; for a
      diffusion model its ODE sampler alone. The last is the default of `schedule`.

    Raises:
      JcmError: if the noise levels do not descend within `config.noise`.
    """
    return denoiser.precond.schedules(sampling(config))
