"""From a config to the objects that the modes share."""

from collections.abc import Sequence
from typing import Any

from jcm import networks
from jcm.diffusion import precond, schedules
from jcm.diffusion.denoiser import Denoiser
from jcm.diffusion.schedule import Schedule, ode_schedule
from jcm.networks import Network
from jcm.pretrained import imagenet
from jcm.runtime.errors import JcmError


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
    return networks.create(
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


def sample_labels(
    config: Any, model: Denoiser, class_names: Sequence[str], count: int
) -> list[int] | None:
    """Labels of `count` samples: those asked for in turn, or every class in turn.

    Returns:
      None for an unconditional model.

    Raises:
      JcmError: for labels that the model does not have.
    """
    asked = config.sample.labels
    classes = model.network.arch.num_classes
    if not classes:
        if asked:
            raise JcmError(
                f"config.sample.labels={asked}, but the model is unconditional: drop"
                " the labels, or train with config.model.class_conditional=True"
            )
        return None
    try:
        numbers = [label_number(label, class_names) for label in asked]
    except JcmError as error:
        raise JcmError(f"config.sample.labels={asked}: {error}") from error
    if any(not 0 <= number < classes for number in numbers):
        raise JcmError(
            f"config.sample.labels={asked}: the classes are 0 to {classes - 1}"
        )
    numbers = numbers or range(classes)
    return [numbers[i % len(numbers)] for i in range(count)]


def label_number(label: int | str, class_names: Sequence[str]) -> int:
    """The number of a class by number or name; of ImageNet's also by WordNet's number.

    Raises:
      JcmError: for a name that is none.
    """
    if not isinstance(label, str):
        return label
    for name in (label, imagenet.other_names().get(label)):
        if name in class_names:
            return class_names.index(name)
    known = ", ".join(class_names[:10]) or "none"
    more = f", ... ({len(class_names)} in all)" if len(class_names) > 10 else ""
    raise JcmError(f"label {label!r} is no class: the model knows {known}{more}")
