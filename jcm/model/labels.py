"""Class labels of images, given by number or by name."""

import functools
import unicodedata
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging
from jaxtyping import Int

from jcm.diffusion.denoiser import Denoiser
from jcm.pretrained import imagenet
from jcm.runtime.arguments import whole
from jcm.runtime.arrays import AnyArray
from jcm.runtime.errors import JcmError, nearest

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


def label_number(label: Any, class_names: Sequence[str]) -> int:
    """Returns the number of a class.

    If the classes are named by numbers, a label can mean two classes: "2" as text is
    the class of this name, and 2 the class number 2. Which one is used is logged if
    they differ.

    Args:
      label: the number of a class, as a whole number of Python, NumPy or JAX, or its
        name as text, in any form of Unicode. For a class of ImageNet, the text may be
        its WordNet id, such as n02123045.
      class_names: names of the classes 0, 1, ...

    Raises:
      JcmError: if no class or several classes have this name, or the label is neither
        text nor a whole number.
    """
    if not isinstance(label, str):
        number = _as_number(label)
        if 0 <= number < len(class_names) and str(number) in class_names:
            _log_choice(
                repr(number), number, class_names.index(str(number)), class_names
            )
        return number
    names = [unicodedata.normalize("NFC", name) for name in class_names]
    for name in (
        unicodedata.normalize("NFC", label),
        imagenet.other_names().get(label),
    ):
        if name in names:
            if names.count(name) > 1:
                raise JcmError(f"several classes are named {name!r}: pass a number")
            number = names.index(name)
            if name.isdecimal() and int(name) < len(names):
                _log_choice(repr(label), number, int(name), class_names)
            return number
    known = ", ".join(class_names[:10]) or "known by number alone"
    more = f", ... ({len(class_names)} in all)" if len(class_names) > 10 else ""
    found = f"the classes are {known}{more}"
    same = [name for name in names if label.isdecimal() and _is_number(name, label)]
    if near := " or ".join(same) or nearest(label, names):
        found = f"did you mean {near}? {found[0].upper()}{found[1:]}"
    elif label.isdecimal() and int(label) < len(names):
        found = f"pass {label} as a number, without quotes; {found}"
    raise JcmError(f"label {label!r} is unknown: {found}")


def _is_number(name: str, label: str) -> bool:
    """Returns whether a name is a number with other leading zeros than a label."""
    return name.isdecimal() and name.lstrip("0") == label.lstrip("0")


def _as_number(label: Any) -> int:
    """Returns a whole number as one of Python.

    Raises:
      JcmError: if it is something else.
    """
    try:
        return whole("label", label)
    except JcmError:
        raise JcmError(
            f"label {label!r} is not a class: pass its name, or its number"
        ) from None


def _log_choice(
    label: str, chosen: int, other: int, class_names: Sequence[str]
) -> None:
    """Logs which of two classes a label means, if they differ."""
    if chosen != other:
        _log_once(label, chosen, class_names[chosen], other, class_names[other])


# A run often samples with the same labels.
@functools.cache
def _log_once(label: str, chosen: int, name: str, other: int, its_name: str) -> None:
    logging.warning(
        "label %s is class number %d, named %r, and not number %d, named %r: text is"
        " the name of a class, and a number its place from 0",
        *(label, chosen, name, other, its_name),
    )
