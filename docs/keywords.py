"""Shows the fields of a dataclass that a function takes as keyword arguments."""

import ast

import griffe

from jcm.runtime.arguments import with_attributes

_DECORATOR = "fields_as_keywords"


class Keywords(griffe.Extension):
    """Does for the site what `jcm.runtime.arguments.fields_as_keywords` does for help.

    A function with this decorator has one argument that is a dataclass; here its fields
    take the place of the argument, in the signature and in the docstring.
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
                    first, *rest = call.arguments
                    path = first.canonical_path  # of the dataclass
                    name = ast.literal_eval(str(rest[0])) if rest else "options"
                    _expand(function, name, loader.modules_collection[path])


def _functions(parent: griffe.Object):
    """Yields the functions of a module and of what it holds."""
    for member in parent.members.values():
        if member.is_alias:
            continue
        if member.is_function:
            yield member
        elif member.is_module or member.is_class:
            yield from _functions(member)


def _expand(function: griffe.Function, name: str, options: griffe.Class) -> None:
    """Puts the fields of a dataclass in the place of an argument."""
    del function.parameters[name]
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
        text.value = with_attributes(text.value, name, described.value)
