"""Shows the fields of a dataclass that a function takes as keyword arguments."""

import griffe

from jcm.runtime.arguments import with_attributes

_DECORATOR = "fields_as_keywords"


class Keywords(griffe.Extension):
    """Does for the site what `jcm.runtime.arguments.fields_as_keywords` does for help.

    A function with this decorator takes the fields of a dataclass as `**options`; here
    they take the place of `options`, in the signature and in the docstring.
    """

    def on_package(
        self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: object
    ) -> None:
        """Changes all functions of a package."""
        for function in _functions(pkg):
            for decorator in function.decorators:
                call = decorator.value
                if (
                    isinstance(call, griffe.ExprCall)
                    and str(call.function) == _DECORATOR
                ):
                    path = call.arguments[0].canonical_path  # of the dataclass
                    _expand(function, loader.modules_collection[path])


def _functions(parent: griffe.Object):
    """Yields the functions of a module and of what it holds."""
    for member in parent.members.values():
        if member.is_alias:
            continue
        if member.is_function:
            yield member
        elif member.is_module or member.is_class:
            yield from _functions(member)


def _expand(function: griffe.Function, options: griffe.Class) -> None:
    """Puts the fields of a dataclass in the place of `**options`."""
    del function.parameters["options"]
    for field in options.attributes.values():
        function.parameters.add(
            griffe.Parameter(
                field.name,
                annotation=field.annotation,
                kind=griffe.ParameterKind.keyword_only,
                default=field.value,
            )
        )
    text, described = function.docstring, options.docstring
    if text and described:
        text.value = with_attributes(text.value, described.value)
