"""The fields of a config on the screen: `jcm config`."""

import argparse
import ast
import functools
import operator
import textwrap
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from jcm import config as config_lib
from jcm.commands import cli, parsing
from jcm.runtime import similar
from jcm.runtime.errors import JcmError, printable
from jcm.runtime.fields import Field

# The columns in which the values of fields, their explanations, and the titles of
# configs begin.
_VALUE, _DOC, _TITLE = 20, 34, 29
# At most this many characters of a value are shown.
_LONGEST = 1000


def main(arguments: argparse.Namespace) -> None:
    """Prints the fields of a config, or the list of configs if none is given.

    Args:
      arguments: the flags `flags.CONFIG`.

    Raises:
      JcmError: if there is no config to print, or no section or field of a name.
    """
    if arguments.config is None and not (arguments.name or arguments.workdir):
        print(list_of_configs())
    else:
        print(table(cli.required_config(arguments), arguments.name))
        software = _software(arguments.workdir) if not arguments.name else ""
        if software:
            print(f"\ntrained with\n{software}")


def _software(workdir: str | None) -> str:
    """Returns the versions and devices of a run; "" if the workdir holds none."""
    if workdir is None:
        return ""
    from jcm.run import storage  # imports JAX
    from jcm.run import workdir as workdir_lib

    folder = storage.local_folder(workdir)
    if not (folder / "run.json").exists():
        return ""
    text = workdir_lib.read(folder).software
    indent = " " * 2
    return textwrap.fill(
        printable(text),
        parsing.width(),
        initial_indent=indent,
        subsequent_indent=indent,
    )


def table(config: ConfigDict, names: Sequence[str] = ()) -> str:
    """Returns the fields of a config with their values and explanations.

    Args:
      config: the config.
      names: sections and fields to show, such as "train", "model.adm" or
        "learning_rate"; by default all.

    Raises:
      JcmError: if there is no section or field of a name.
    """
    fields = config_lib.fields(config)
    chosen = {field for name in names for field in _fields_named(name, config)}
    sections: dict[str, list[str]] = {}
    for name, field in fields.items():
        if chosen and name not in chosen:
            continue
        value = functools.reduce(operator.getitem, name.split("."), config)
        section, _, short = name.rpartition(".")
        entry = _entry(short, value, field)
        sections.setdefault(f"config.{section}".rstrip("."), []).append(entry)
    blocks = ["\n".join([name, *entries]) for name, entries in sections.items()]
    return "\n\n".join(["* differs from the base config", *blocks])


def list_of_configs() -> str:
    """Returns the configs of the package, with the first words of their docstrings."""
    lines = ["configs for --config=FILE, or --config=FILE:smoke for a run of seconds:"]
    for path in config_lib.shipped():
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        title = text.split("\n\n")[0]
        lines.append(_columns(f"  configs/{path.name}", title, _TITLE))
    return "\n".join(lines)


def unknown(name: str, config: ConfigDict) -> JcmError:
    """Returns the error for a field that a config does not have.

    Args:
      name: the dotted name.
      config: the config.
    """
    known = list(config_lib.fields(config))
    inside = [field for field in known if field.startswith(f"{name}.")]
    if inside:
        return JcmError(
            f"config.{name} is a section: name one of its fields, such as"
            f" config.{inside[0]}"
        )
    from jcm import methods

    others = [
        method
        for method in methods.NAMES
        if name in config_lib.fields(config_lib.base(method))
    ]
    if others:
        return JcmError(
            f"config.{name} is a field of config.method={' or '.join(others)}, and the"
            f" method of this config is {config.method}: drop it"
        )
    meant = similar.fields(name, known) or similar.misspelt(name, known)
    guess = ": `jcm config --config=FILE` prints all fields"
    if meant:
        guess = f": did you mean {' or '.join(f'config.{each}' for each in meant)}?"
    return JcmError(f"unknown field config.{name}{guess}")


def _fields_named(name: str, config: ConfigDict) -> list[str]:
    """Returns the dotted names of the fields that a name stands for.

    Raises:
      JcmError: if there are none.
    """
    name = name.removeprefix("config.")
    known = list(config_lib.fields(config))
    found = [field for field in known if f"{field}.".startswith(f"{name}.")]
    likely = similar.likely(name, known)
    found = found or [field for field in likely if f".{field}".endswith(f".{name}")]
    if not found:
        raise unknown(name, config)
    return found


def _entry(name: str, value: Any, field: Field) -> str:
    """Returns the lines of a field."""
    differs = value != field.default
    left = f"{'*' if differs else ' '} {name}".ljust(_VALUE - 1)
    notes = [field.bounds] if field.bounds else []
    notes += [f"base {_written(field.default)}"] if differs else []
    text = field.doc + (f" [{'; '.join(notes)}]" if notes else "")
    return _columns(f"{left} {_written(value)}", text, _DOC)


def _written(value: Any) -> str:
    """Returns a value as it is written after --config.FIELD=."""
    text = value if isinstance(value, str) and value else repr(value)
    return printable(text, _LONGEST)


def _columns(left: str, right: str, column: int) -> str:
    """Returns two texts side by side, or the second below the first if that is long.

    Args:
      left: a text of one line.
      right: a text that may be wrapped.
      column: where the second text begins.
    """
    width, margin = parsing.width() - column, " " * column
    lines = textwrap.wrap(
        " ".join(right.split()), width, break_long_words=False, break_on_hyphens=False
    )
    if len(left) < column:
        left, lines = f"{left:{column}}{lines[0]}", lines[1:]
    return "\n".join([left, *(margin + line for line in lines)])
