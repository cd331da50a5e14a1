"""Keyword arguments that are shared, and errors that name the right argument."""

import dataclasses
import functools
import inspect
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np

from jcm.runtime import errors
from jcm.runtime.errors import JcmError, shown

_P = ParamSpec("_P")
_Result = TypeVar("_Result")

# Types of more letters are left out of what `help` shows.
_READABLE = 40

# What other libraries call an argument. Of several, the first that a function has is
# meant.
_ALSO_CALLED = {
    "count": ("n", "num", "num_images", "num_samples", "batch_size", "size"),
    "variants": ("n", "num", "count", "num_images", "num_samples", "batch_size"),
    "num_images": ("n", "num", "count", "num_samples"),
    "image_size": ("size", "resolution"),
    "seed": ("key", "rng", "rng_key", "generator", "random_state"),
    "steps": ("num_steps", "num_inference_steps", "nfe"),
    "sigmas": ("sigma", "ts", "timesteps", "noise_levels"),
    "sigma": ("noise", "noise_level", "std", "strength"),
    "labels": ("y", "classes", "class_label", "class_labels", "class_names", "cls"),
    "columns": ("ncol", "ncols", "nrow", "nrows", "cols"),
    "scores": ("metrics", "metric"),
    "output": ("output_type", "format", "as_pil", "return_type"),
    "trajectory": ("return_trajectory", "return_intermediates", "intermediates"),
    "progress": ("verbose", "show_progress", "progress_bar", "disable"),
    "data": ("dataset", "images", "x", "train_data"),
    "workdir": ("path", "output_dir", "logdir", "folder"),
}

# What other libraries call what is found here.
_PLACES = {
    "jcm.load": ("load", "load_model", "load_checkpoint", "from_pretrained"),
    "jcm.save(model, folder)": ("save", "save_model", "save_pretrained", "export"),
    "jcm.save_png": ("save_png", "save_image", "save_images", "save_grid", "make_grid"),
    "jcm.open_pictures": ("load_image", "load_images", "open_image", "read_image"),
    "jcm.train": ("train", "fit"),
    "jcm.evaluate(model)": ("evaluate", "score"),
    "model.sample": ("sample", "generate"),
    "model.denoise": ("denoise",),
    "model.edit": ("edit", "edits", "editor"),
    "model.edit.inpaint": ("inpaint", "inpainting"),
    "model.edit.outpaint": ("outpaint", "outpainting"),
    "model.edit.colorize": ("colorize", "colorise", "colourise", "colourize"),
    "model.edit.super_resolve": (
        *("super_resolve", "superresolve", "superresolution", "super_resolution"),
        "upscale",
    ),
    "model.edit.stroke_to_image": ("stroke_to_image", "sdedit", "img2img"),
    "model.edit.variations": ("variations", "variation"),
    "model.edit.interpolate": ("interpolate", "interpolation"),
}
# Other names of an argument or attribute must be at least so similar to be suggested.
_SIMILAR = 0.75


def no_attribute(
    what: str, place: str, name: str, known: Iterable[str]
) -> AttributeError:
    """Returns the AttributeError that says what has no such name, and what to use.

    Args:
      what: begins the message, such as "module 'jcm'".
      place: how the attributes of it are written, such as "jcm".
      name: the name that it does not have.
      known: the names that it has.
    """
    message = f"{what} has no attribute {name!r}"
    if name.startswith("_"):
        return AttributeError(message)
    places = (other for other, names in _PLACES.items() if name in names)
    near = errors.nearest(name, known, _SIMILAR)
    meant = next(places, f"{place}.{near}" if near else None)
    return AttributeError(f"{message}: use {meant}" if meant else message)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name that was probably meant; None if none is similar."""
    known = list(known)
    for meant, names in _ALSO_CALLED.items():
        if meant in known and name in names:
            return meant
    words = set(name.split("_"))
    sharing = [each for each in known if words & set(each.split("_"))]
    return errors.nearest(name, known, _SIMILAR) or next(iter(sharing), None)


def whole(
    name: str,
    value: Any,
    least: int | None = None,
    most: int | None = None,
    *,
    otherwise: str = "",
) -> int:
    """Returns a whole number of Python, NumPy or JAX as an int.

    Args:
      name: of the argument, for the error.
      value: the number, which may be an array without axes.
      least: the smallest allowed value; None for no bound.
      most: the largest allowed value; None for no bound.
      otherwise: what the argument may be, too, for the error.

    Raises:
      JcmError: if it is not a whole number, too small or too large.
    """
    try:
        if isinstance(value, bool | np.bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise JcmError(
            f"{name}={shown(value)} must be a whole number{otherwise}"
        ) from None
    _check_bounds(name, number, least, most)
    return number


def optional(name: str, value: Any, least: int | None = None) -> int | None:
    """Returns a whole number like `whole`, and None for None."""
    return None if value is None else whole(name, value, least)


def wholes(name: str, values: Any) -> tuple[int, ...]:
    """Returns whole numbers, or a single one, as a tuple; raises like `whole`."""
    several = np.ndim(values) or isinstance(values, Sequence)
    return tuple(whole(name, each) for each in (values if several else [values]))


def numbers(name: str, values: Any) -> Any:
    """Returns one or several numbers of Python, NumPy or JAX as an array.

    Args:
      name: of the argument, for the error.
      values: a number, a sequence of numbers or an array; traced ones are allowed.

    Raises:
      JcmError: if a value is no number, such as a string or None.
    """
    is_array = hasattr(values, "dtype") and hasattr(values, "ndim")
    try:
        array = values if is_array else np.asarray(values)
    except (TypeError, ValueError):  # such as a number beside a list
        array = np.empty(0, object)
    dtype = array.dtype  # that of a JAX key has no kind
    if getattr(dtype, "kind", "?") not in "iuf" and dtype.name != "bfloat16":
        raise JcmError(f"{name}={shown(values)} must be a number, or several")
    return array


def number(
    name: str, value: Any, least: float | None = None, most: float | None = None
) -> float:
    """Returns one number of Python, NumPy or JAX; the arguments are those of `whole`.

    Raises:
      JcmError: if it is not a number, too small or too large. With a bound, it may not
        be NaN.
    """
    array = numbers(name, value)
    if array.ndim:
        raise JcmError(f"{name}={shown(value)} must be a single number")
    _check_bounds(name, float(array), least, most)
    return float(array)


def _check_bounds(
    name: str, number: float, least: float | None, most: float | None
) -> None:
    """Raises JcmError if a number is outside of its bounds."""
    if least is not None and not number >= least:
        raise JcmError(f"{name}={shown(number)} must be at least {least}")
    if most is not None and not number <= most:
        raise JcmError(f"{name}={shown(number)} must be at most {most}")


def explained(function: Callable[_P, _Result]) -> Callable[_P, _Result]:
    """Makes a call with wrong arguments raise a JcmError that names the right ones."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: _P.args, **keywords: _P.kwargs) -> _Result:
        _check(function.__name__, signature, args, keywords)
        return function(*args, **keywords)

    return _with_signature(wrapper, signature)


def fields_as_keywords(
    options: type,
) -> Callable[[Callable[_P, _Result]], Callable[_P, _Result]]:
    """Shows the fields of a dataclass as the keyword arguments of a function.

    The function takes them as `**options`. Its signature and docstring show each, with
    its default: the line about `options` in the docstring is replaced by the attributes
    of the dataclass. A call with wrong arguments raises a JcmError, see `explained`.

    Args:
      options: a dataclass whose fields have defaults.
    """

    def decorate(function: Callable[_P, _Result]) -> Callable[_P, _Result]:
        own = inspect.signature(function)
        signature = own.replace(
            parameters=[
                *(each for each in own.parameters.values() if each.name != "options"),
                *(
                    inspect.Parameter(
                        field.name,
                        inspect.Parameter.KEYWORD_ONLY,
                        default=field.default,
                        annotation=field.type,
                    )
                    for field in dataclasses.fields(options)
                ),
            ]
        )

        @functools.wraps(function)
        def wrapper(*args: _P.args, **keywords: _P.kwargs) -> _Result:
            _check(function.__name__, signature, args, keywords)
            return function(*args, **keywords)

        decorated = _with_signature(wrapper, signature)
        text, described = inspect.getdoc(function), inspect.getdoc(options)
        if text and described:
            decorated.__doc__ = with_attributes(text, described)
        return decorated

    return decorate


def _with_signature(
    function: Callable[_P, _Result], signature: inspect.Signature
) -> Callable[_P, _Result]:
    """Gives a function a signature without the long types that `help` spells out."""
    parameters = [
        each
        if len(inspect.formatannotation(each.annotation)) <= _READABLE
        else each.replace(annotation=inspect.Parameter.empty)
        for each in signature.parameters.values()
    ]
    vars(function)["__signature__"] = signature.replace(parameters=parameters)
    return function


def with_attributes(text: str, described: str) -> str:
    """Returns a docstring that describes attributes in place of `options`.

    Args:
      text: the docstring of a function.
      described: the docstring of a class, which ends with its attributes.
    """
    _, _, attributes = described.partition("Attributes:\n")
    return re.sub(
        r"^  options: .*(\n    .*)*",
        lambda _: attributes.rstrip(),
        text,
        count=1,
        flags=re.MULTILINE,
    )


def _check(
    name: str,
    signature: inspect.Signature,
    args: Sequence[Any],
    keywords: Mapping[str, Any],
) -> None:
    """Raises JcmError if a function cannot be called with these arguments."""
    try:
        signature.bind(*args, **keywords)
    except TypeError as error:
        raise JcmError(_advice(name, signature, keywords, error)) from None


def _advice(
    name: str,
    signature: inspect.Signature,
    keywords: Mapping[str, Any],
    error: TypeError,
) -> str:
    """Returns one line on what is wrong with a call, and on what is right."""
    known = [each for each in signature.parameters if each != "self"]
    takes = f"{name} takes {', '.join(known)}"
    unknown = [each for each in keywords if each not in known]
    if unknown:
        meant = nearest(unknown[0], known)
        remedy = f": use {meant}" if meant else ""
        return f"{name} has no argument {unknown[0]!r}{remedy} ({takes})"
    by_position = [
        each.name
        for each in signature.parameters.values()
        if each.kind == inspect.Parameter.POSITIONAL_OR_KEYWORD and each.name != "self"
    ]
    if "too many positional" in str(error):
        return (
            f"{name} takes {', '.join(by_position) or 'nothing'} by position: name the"
            f" other arguments ({takes})"
        )
    return f"{name}: {error} ({takes})"
