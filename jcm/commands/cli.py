"""The frame of the program: reads the command line, and reports errors in one line."""

import argparse
import contextlib
import errno
import importlib.metadata
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from jcm.commands import parsing
from jcm.runtime import logs
from jcm.runtime.errors import JcmError, Preempted, one_line
from jcm.runtime.fields import KINDS, Field
from jcm.runtime.paths import expanded

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)")


def run(main: Callable[[argparse.Namespace], Any]) -> None:
    """Runs the program.

    Args:
      main: takes the command and its flags, as `parse` returns them.

    Raises:
      SystemExit: with exit code 1 after an error that the user can fix, which is
        reported in one line, and 75 after SIGTERM or Ctrl-C: the same command then
        resumes. A second Ctrl-C ends it at once, with exit code 130.
    """
    with errors_in_one_line():
        app.run(main, flags_parser=parse)


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Ends the program with one line if the block raises what the user can fix."""
    logging.set_verbosity(logging.INFO)
    logs.prepare(logging.get_absl_handler())
    try:
        try:
            with logs.tracebacks_hidden():
                yield
        finally:
            sys.stdout.flush()
    except (JcmError, Preempted) as error:
        print(f"jcm: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of the output has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = ": free some space there" if full else ""
        sys.exit(f"jcm: {name}{error.strerror or error}{remedy}")
    except KeyboardInterrupt:
        sys.exit("jcm: interrupted; the same command resumes a training run")


@contextlib.contextmanager
def on_devices(*, resumes: bool = True) -> Iterator[None]:
    """Prepares JAX for the block; an error in it also ends the run's other processes.

    The block may join the other processes by `distributed.initialize`. At its end, the
    workdirs on object stores are up to date, and signals are ignored from then on.

    Args:
      resumes: whether the program resumes when it is started again after a signal.
    """
    import jax

    from jcm.run import storage
    from jcm.runtime import cache, distributed, preemption

    preemption.exit_on_signals(resumes=resumes)
    # Training, evaluation and every restart compile the same sampler.
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache.folder("xla")))
    try:
        yield
    except (Exception, KeyboardInterrupt, Preempted) as error:
        if not getattr(error, "by_all", False):
            distributed.end_others(error)
        raise
    finally:
        try:
            storage.finish_uploads()
        finally:
            # The program ends with the code that it has by now. A signal would
            # interrupt how JAX leaves the other processes, which then count this one as
            # lost.
            preemption.ignore_signals()


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the command and its flags.

    Args:
      argv: the name of the program, and its arguments: COMMAND [--FLAG=VALUE ...], or
        flags with --mode=COMMAND among them, which is "train" if it is missing.

    Returns:
      The flags by name. `command` is the name of the command. If the command has a
      config, `config` is the config with the changed fields, or None if neither
      --config nor --workdir gives one, `config_name` is its name, such as
      digits_cd_smoke, and `given` has the dotted names of the changed fields.

    Raises:
      JcmError: if an argument is unknown or has a wrong value.
      SystemExit: after a text that the arguments ask for, such as a help text.
    """
    overrides, words = _split(_command_first(argv[1:]))
    arguments = parsing.parse(words)
    if "config" in arguments:
        from jcm import config as config_lib

        spec, workdir = arguments.config, getattr(arguments, "workdir", None)
        arguments.config_name = config_lib.name(spec or "")
        arguments.config = _base(spec, workdir)
        matches = filter(None, map(_OVERRIDE.match, overrides))
        arguments.given = tuple(found[1] for found in matches)
        if overrides:
            _override(required_config(arguments), overrides)
        if arguments.config is not None:
            config_lib.check(arguments.config)
    elif overrides:
        raise JcmError(f"jcm {arguments.command} has no config: drop {overrides[0]}")
    return arguments


def required_config(arguments: argparse.Namespace) -> ConfigDict:
    """Returns the config of a command that needs one.

    Raises:
      JcmError: if there is none.
    """
    if arguments.config is None:
        from jcm.commands import missing

        raise missing.error(arguments)
    return arguments.config


def _command_first(words: Sequence[str]) -> list[str]:
    """Returns the arguments with the name of the command in front.

    Raises:
      SystemExit: after a text that is not the help of a command.
    """
    words = list(words)
    if not words or words in ([flag] for flag in ("help", *parsing.HELP)):
        print(parsing.overview())
        raise SystemExit(0)
    if words[0] == "--version":
        print(f"jcm {importlib.metadata.version('jcm')}")
        raise SystemExit(0)
    shell, _ = _take("print-completion", words[:2])
    if shell is not None:
        from jcm.commands import completion

        print(completion.script(shell))
        raise SystemExit(0)
    if words[0] == "help":
        return [*words[1:], "--help"]
    mode, rest = _take("mode", words)
    if mode is not None:
        return [mode, *rest]
    return words if not words[0].startswith("-") else ["train", *words]


def _take(name: str, words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Returns the value of a flag, or None without it, and all other arguments."""
    value, rest, remaining = None, [], iter(words)
    for word in remaining:
        flag, equals, after = word.partition("=")
        if flag == f"--{name}":
            value = after if equals else next(remaining, "")
        else:
            rest.append(word)
    return value, rest


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the flags --config.FIELD=VALUE that change fields, and all others."""
    overrides: list[str] = []
    others: list[str] = []
    lacks_value = False
    for word in words:
        is_override = bool(_OVERRIDE.match(word))
        is_value = lacks_value and not re.match("-+[a-z]", word)
        if is_value:
            overrides[-1] += f"={word}"
        else:
            (overrides if is_override else others).append(word)
        lacks_value = is_override and not re.match("--?no|.*=", word)
    return overrides, others


def _base(spec: str | None, workdir: str | None) -> ConfigDict | None:
    """Returns the config of a file, or else the one that a workdir records.

    Raises:
      JcmError: if the file is missing or does not define a config.
    """
    from jcm import config as config_lib

    if spec is not None:
        return config_lib.load(spec)
    if workdir is None:
        return None
    is_local = not workdir.startswith("gs://")
    if is_local and not (expanded(workdir) / "run.json").exists():
        return None  # at once, since JAX takes seconds to import
    from jcm.run import storage
    from jcm.run import workdir as workdir_lib

    folder = storage.local_folder(workdir)
    holds_run = (folder / "run.json").exists()
    return workdir_lib.read(folder).config if holds_run else None


def _override(config: ConfigDict, words: Sequence[str]) -> None:
    """Changes the fields of a config that flags --config.FIELD name.

    Raises:
      JcmError: if a field is unknown, or if a value has another type.
    """
    from jcm import config as config_lib
    from jcm.commands.config import unknown

    fields = config_lib.fields(config)
    for found in filter(None, map(_OVERRIDE.match, words)):
        if found[1] not in fields:
            raise unknown(found[1], config)
    words = _leave_open(config, fields, words)
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=list(words)
        )
        rest = values(["jcm", *words])[1:]
    except (flags.Error, TypeError, ValueError) as error:
        raise _explained(error, fields) from error
    if rest:
        raise JcmError(f"unknown argument {rest[0]!r}: flags begin with --")


def _leave_open(
    config: ConfigDict, fields: Mapping[str, Field], words: Sequence[str]
) -> list[str]:
    """Sets fields to None, which the flags of ml_collections cannot.

    Returns:
      The flags of all other fields.
    """
    others = list(words)
    for name, field in fields.items():
        flag = f"--config.{name}"
        if field.default is None and f"{flag}=None" in others:
            section, _, short = name.rpartition(".")
            with config.ignore_type():
                config[section][short] = None
            # The last of repeated flags counts.
            last = len(others) - others[::-1].index(f"{flag}=None")
            others = [
                word
                for place, word in enumerate(others)
                if place >= last or word.partition("=")[0] != flag
            ]
    return others


def _explained(error: Exception, fields: Mapping[str, Field]) -> JcmError:
    """Returns the error for a value that a field of a config does not accept."""
    text = one_line(error)
    if found := re.fullmatch(r"Missing value for flag -*(\S+)", text):
        return JcmError(f"--{found[1]} needs a value")
    found = re.match(r"flag --config\.(\S+?)=(.*?): ", text)
    if not found or found[1] not in fields:
        return JcmError(text)
    field = fields[found[1]]
    kind = KINDS[tuple if isinstance(field.default, tuple) else field.types[0]]
    example = ", or None" if field.default is None else f", such as {field.default}"
    return JcmError(f"config.{found[1]}={found[2]} must be {kind}{example}")
