"""Keyword arguments that are shared, and errors that name the right argument."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from jcm.runtime import errors
from jcm.runtime.errors import JcmError

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Types of more letters are left out of what `help` shows.
_READABLE = 40

# What other libraries call an argument.
_ALSO_CALLED = {
    "count": ("n", "num", "num_images", "num_samples", "batch_size", "size"),
    "image_size": ("size", "resolution"),
    "seed": ("key", "rng", "rng_key", "generator", "random_state"),
    "steps": ("num_steps", "num_inference_steps", "nfe"),
    "sigmas": ("sigma", "ts", "timesteps", "noise_levels"),
    "labels": ("y", "classes", "class_labels", "class_names"),
    "output": ("output_type", "format", "as_pil", "return_type"),
    "trajectory": ("return_trajectory", "return_intermediates", "intermediates"),
    "progress": ("verbose", "show_progress", "progress_bar", "disable"),
    "data": ("dataset", "images", "x", "train_data"),
    "workdir": ("path", "output_dir", "logdir", "folder"),
}


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name that was probably meant; None if none is similar."""
    known = list(known)
    for meant, names in _ALSO_CALLED.items():
        if meant in known and name in names:
            return meant
    words = set(name.split("_"))
    sharing = [each for each in known if words & set(each.split("_"))]
    return errors.nearest(name, known) or next(iter(sharing), None)


def explained(function: _Function) -> _Function:
    """Makes a call with wrong arguments raise a JcmError that names the right ones."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: Any, **keywords: Any) -> Any:
        _check(function.__name__, signature, args, keywords)
        return function(*args, **keywords)

    wrapper.__signature__ = _readable(signature)  # type: ignore[attr-defined]
    return wrapper  # type: ignore[return-value]


def fields_as_keywords(
    options: type, name: str = "options"
) -> Callable[[_Function], _Function]:
    """Gives a function the fields of a dataclass as keyword arguments.

    One keyword argument of the function is an instance of the dataclass. Callers pass
    the fields instead. The signature and the docstring show them: the line about the
    argument in the docstring is replaced by the attributes of the dataclass.

    Args:
      options: a dataclass whose fields have defaults.
      name: of the argument.
    """
    fields = dataclasses.fields(options)

    def decorate(function: _Function) -> _Function:
        own = inspect.signature(function)
        signature = own.replace(
            parameters=[
                *(each for each in own.parameters.values() if each.name != name),
                *(
                    inspect.Parameter(
                        field.name,
                        inspect.Parameter.KEYWORD_ONLY,
                        default=field.default,
                        annotation=field.type,
                    )
                    for field in fields
                ),
            ]
        )

        @functools.wraps(function)
        def wrapper(*args: Any, **keywords: Any) -> Any:
            _check(function.__name__, signature, args, keywords)
            given = {
                field.name: keywords.pop(field.name)
                for field in fields
                if field.name in keywords
            }
            return function(*args, **{name: options(**given)}, **keywords)

        wrapper.__signature__ = _readable(signature)  # type: ignore[attr-defined]
        text, described = inspect.getdoc(function), inspect.getdoc(options)
        if text and described:
            wrapper.__doc__ = with_attributes(text, name, described)
        return wrapper  # type: ignore[return-value]

    return decorate


def _readable(signature: inspect.Signature) -> inspect.Signature:
    """Returns a signature without the long types that `help` would spell out."""
    parameters = [
        each
        if len(inspect.formatannotation(each.annotation)) <= _READABLE
        else each.replace(annotation=inspect.Parameter.empty)
        for each in signature.parameters.values()
    ]
    return signature.replace(parameters=parameters)


def with_attributes(text: str, name: str, described: str) -> str:
    """Returns a docstring that describes attributes in place of one argument.

    Args:
      text: the docstring of a function.
      name: of the argument.
      described: the docstring of a class, which ends with its attributes.
    """
    _, _, attributes = described.partition("Attributes:\n")
    return re.sub(
        rf"^  {name}: .*(\n    .*)*",
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
