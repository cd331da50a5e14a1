"""Completion of commands, flags and config fields by the shell."""

import argparse
from typing import Any

import shtab

from jcm import config as config_lib
from jcm import methods
from jcm.commands import parsing
from jcm.runtime.errors import JcmError, did_you_mean

# How the values of flags are called that are files or folders.
_FILES = {
    "FILE[:smoke]": shtab.FILE,
    "PATH": shtab.FILE,
    "SOURCE": shtab.FILE,
    "MODEL": shtab.FILE,
    "DIR": shtab.DIRECTORY,
    "FOLDER": shtab.DIRECTORY,
}


def script(shell: str) -> str:
    """Returns the script for a shell, which completes what follows `jcm`.

    Args:
      shell: one that shtab supports, such as bash.

    Raises:
      JcmError: if there is no script for the shell.
    """
    if shell not in shtab.SUPPORTED_SHELLS:
        known = f": use one of {', '.join(shtab.SUPPORTED_SHELLS)}"
        guess = did_you_mean(shell, shtab.SUPPORTED_SHELLS, known)
        raise JcmError(f"no completion for the shell {shell!r}{guess}")
    return shtab.complete(_parser(), shell)


def _parser() -> argparse.ArgumentParser:
    """Returns one parser of all commands, with all fields of configs as flags."""
    whole = argparse.ArgumentParser("jcm", description=parsing.PURPOSE)
    places = {"": whole.add_subparsers()}
    for name, command in parsing.COMMANDS.items():
        first, _, last = name.rpartition(" ")
        if first not in places:
            several = places[""].add_parser(first, help=parsing.purpose(first))
            places[first] = several.add_subparsers()
        parser = places[first].add_parser(
            last,
            help=command.purpose,
            parents=[parsing.parser(name)],
            add_help=False,
        )
        actions: list[Any] = parser._actions  # shtab gives them attributes
        for action in actions:
            if action.metavar in _FILES:
                action.complete = _FILES[action.metavar]
            if "--config.FIELD" in action.option_strings:
                action.help = argparse.SUPPRESS
        if "--config" in parsing.flags_of(name):
            for field, doc in _fields().items():
                parser.add_argument(f"--config.{field}", help=doc.replace("%", "%%"))
    return whole


def _fields() -> dict[str, str]:
    """Returns the explanations of the fields of all methods by dotted name."""
    return {
        name: field.doc
        for method in methods.NAMES
        for name, field in config_lib.fields(config_lib.base(method)).items()
    }
