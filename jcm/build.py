"""From a config to the objects that the modes share."""

from typing import Any

from jcm import models, precond, schedules
from jcm.denoiser import Denoiser
from jcm.errors import JcmError
from jcm.models import Network
from jcm.sampling import Schedule, ode_schedule


def network(config: Any, num_classes: int) -> Network:
    """F of a config.

    Args:
      config: the whole config.
      num_classes: of the data set; counts only for a class-conditional model.
    """
    fields = config.model.to_dict()
    conditional = fields.pop("class_conditional")
    if conditional and num_classes < 2:
        raise JcmError(
            "config.model.class_conditional=True needs data with classes: put the"
            " pictures into sub-folders, or set it to False"
        )
    return models.create(
        fields,
        image_size=config.data.image_size,
        image_channels=config.data.channels,
        num_classes=num_classes if conditional else 0,
    )


def grid(config: Any) -> schedules.KarrasGrid:
    """The noise levels of a config."""
    noise = config.noise
    return schedules.KarrasGrid(noise.sigma_min, noise.sigma_max, noise.rho)


def sampling_schedules(config: Any, model: Denoiser) -> list[Schedule]:
    """What a config asks to be shown of a model.

    Returns:
      For a consistency model, schedules of one, two, ... of `config.sample.sigmas`;
      for a diffusion model its ODE sampler alone.

    Raises:
      JcmError: for noise levels that do not descend within the model's range.
    """
    sample = config.sample
    if isinstance(model.precond, precond.Consistency):
        sigmas = tuple(float(sigma) for sigma in sample.sigmas)
        made = [Schedule(sigmas[: n + 1]) for n in range(len(sigmas))]
    else:
        made = [ode_schedule(grid(config), sample.steps, sample.solver)]
    for schedule in made:
        schedule.check(config.noise.sigma_min, config.noise.sigma_max)
    return made


def sample_labels(config: Any, model: Denoiser, count: int) -> list[int] | None:
    """Labels of `count` samples: those asked for in turn, or every class in turn.

    Returns:
      None for an unconditional model.

    Raises:
      JcmError: for labels that the model does not have.
    """
    asked = tuple(config.sample.labels)
    classes = model.network.arch.num_classes
    if not classes:
        if asked:
            raise JcmError(
                f"config.sample.labels={asked}, but the model is unconditional: drop"
                " the labels, or train with config.model.class_conditional=True"
            )
        return None
    if any(not 0 <= label < classes for label in asked):
        raise JcmError(
            f"config.sample.labels={asked}: the classes are 0 to {classes - 1}"
        )
    asked = asked or tuple(range(classes))
    return [asked[i % len(asked)] for i in range(count)]
