"""Public names of a package that are imported when they are first used."""

import importlib
import sys
from collections.abc import Mapping
from typing import Any

from jcm.runtime import arguments


def namespace(package: str, defined_in: Mapping[str, str]) -> None:
    """Gives a package public names.

    A type checker sees none of them, so the package also imports them for it, under
    `TYPE_CHECKING`. It reports any other name.

    Args:
      package: its name.
      defined_in: for each public name the module that defines it; for a module of the
        package, the name of the module itself.
    """

    def find(name: str) -> Any:
        if name not in defined_in:
            what = f"module {package!r}"
            raise arguments.no_attribute(what, package, name, defined_in)
        module = importlib.import_module(defined_in[name])
        is_module = defined_in[name] == f"{package}.{name}"
        found = module if is_module else getattr(module, name)
        setattr(sys.modules[package], name, found)
        return found

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *defined_in})

    # Assigned in the file of the package, __getattr__ would allow every name.
    vars(sys.modules[package]).update(__getattr__=find, __dir__=names)
