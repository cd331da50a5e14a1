"""Class labels of images, given by number or by name."""

from collections.abc import Sequence
from typing import Any

import jax
from jaxtyping import Int

from jcm.diffusion.denoiser import Denoiser
from jcm.pretrained import imagenet
from jcm.runtime.arrays import AnyArray
from jcm.runtime.errors import JcmError

# Classes by number or name: one for all images, or several. None for a default.
Labels = Sequence[int | str] | Int[AnyArray, "..."] | int | str | None


def image_labels(
    config: Any,
    count: int,
    denoiser: Denoiser,
    class_names: Sequence[str],
    labels: Labels = None,
) -> list[int] | None:
    """Returns the label of each of `count` images, which have the given ones in turn.

    Args:
      config: the whole config. Without `labels` the images have those of
        `config.sample.labels`, and if that is empty, every class in turn.
      count: number of images.
      denoiser: has the number of classes.
      class_names: names of the classes 0, 1, ...
      labels: see `label_number`.

    Returns:
      Numbers of classes; None if the denoiser is unconditional.

    Raises:
      JcmError: if a label is not a class, or if there are labels for an unconditional
        denoiser.
    """
    chosen = None if labels is None else _each(labels, 1)
    if chosen is not None and len(chosen):
        return _in_turn(chosen, count, denoiser, class_names)
    default = config.sample.labels
    if default and not denoiser.num_classes:
        raise JcmError(
            f"config.sample.labels={default}, but the model is unconditional: drop the"
            " labels, or train with config.model.class_conditional=True"
        )
    try:
        return _in_turn(default, count, denoiser, class_names)
    except JcmError as error:
        raise JcmError(f"config.sample.labels={default}: {error}") from error


def labels_of_images(
    labels: Labels, count: int, denoiser: Denoiser, class_names: Sequence[str]
) -> Int[AnyArray, " n"] | None:
    """Returns the label of each of `count` given images.

    Args:
      labels: one for all images or one for each; None for an unconditional denoiser.
        Traced labels are only cast, since their values are unknown.
      count: number of images.
      denoiser: has the number of classes.
      class_names: names of the classes 0, 1, ...

    Raises:
      JcmError: if labels are missing, not needed, too many or too few, or if one is not
        a class.
    """
    if labels is None or isinstance(labels, jax.core.Tracer):
        return denoiser.as_labels(labels, count)
    numbers = _numbers(_each(labels, count), class_names)
    return denoiser.as_labels(numbers, count)


def several(labels: Labels) -> Sequence[int | str] | AnyArray | None:
    """Returns labels that are one for each image; None for one label, or none."""
    if isinstance(labels, AnyArray):
        return labels if labels.ndim else None
    if isinstance(labels, Sequence) and not isinstance(labels, str):
        return labels
    return None


def _each(labels: Any, count: int) -> Sequence[int | str] | AnyArray:
    """Returns one label for each of `count` images."""
    found = several(labels)
    return [labels] * count if found is None else found


def _in_turn(
    labels: Sequence[int | str] | AnyArray,
    count: int,
    denoiser: Denoiser,
    class_names: Sequence[str],
) -> list[int] | None:
    """Returns the given labels, or else all, repeated to `count`; None without classes.

    Raises:
      JcmError: if a label is not a class.
    """
    if not denoiser.num_classes:
        denoiser.as_labels(labels if len(labels) else None, count)
        return None
    numbers = _numbers(labels, class_names)
    numbers = numbers or list(range(denoiser.num_classes))
    denoiser.as_labels(numbers, len(numbers))
    return [numbers[i % len(numbers)] for i in range(count)]


def _numbers(
    labels: Sequence[int | str] | AnyArray, class_names: Sequence[str]
) -> list[int]:
    """Returns the numbers of classes."""
    several = labels.tolist() if isinstance(labels, AnyArray) else labels
    return [label_number(label, class_names) for label in several]


def label_number(label: int | str, class_names: Sequence[str]) -> int:
    """Returns the number of a class.

    Args:
      label: its number, its name or, for a class of ImageNet, its WordNet id, such as
        n02123045.
      class_names: names of the classes 0, 1, ...

    Raises:
      JcmError: if no class has this name.
    """
    if not isinstance(label, str):
        return label
    for name in (label, imagenet.other_names().get(label)):
        if name in class_names:
            return class_names.index(name)
    known = ", ".join(class_names[:10]) or "known by number alone"
    more = f", ... ({len(class_names)} in all)" if len(class_names) > 10 else ""
    raise JcmError(f"label {label!r} is unknown: the classes are {known}{more}")
