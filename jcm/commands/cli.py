"""The frame of every program of the package: flags, log lines and errors."""

import errno
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from jcm import config as config_lib
from jcm.commands import logs
from jcm.run import storage
from jcm.runtime import distributed, download, preemption
from jcm.runtime.errors import JcmError, Preempted, one_line

_names = {"config": ""}  # set when the flags are read


def run(
    main: Callable[[Sequence[str]], Any],
    recorded: Callable[[str], ConfigDict | None] = lambda workdir: None,
) -> None:
    """Runs a program and reports an error that the user can fix in one line.

    Such an error ends the program with exit code 1. SIGTERM ends it with exit code 75;
    the same command then resumes the run.

    Args:
      main: the program; takes the name of the program and the arguments that are not
        flags.
      recorded: returns the config of a workdir, or None if the workdir has none. It is
        used if --workdir is given and --config is not.
    """
    logging.set_verbosity(logging.INFO)
    preemption.exit_on_sigterm()
    # Training, evaluation and every restart compile the same sampler.
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(download.cache("xla")))
    logs.prepare(logging.get_absl_handler())
    try:
        app.run(
            _ending_all_processes(main),
            flags_parser=functools.partial(_parse, recorded),
        )
    except (JcmError, Preempted) as error:
        print(f"jcm: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = ": free some space there" if full else ""
        sys.exit(f"jcm: {name}{error.strerror or error}{remedy}")
    except KeyboardInterrupt:
        sys.exit("jcm: interrupted; the same command resumes a training run")
    finally:
        storage.finish_uploads()


def _ending_all_processes(
    main: Callable[[Sequence[str]], Any],
) -> Callable[[Sequence[str]], Any]:
    """Wraps `main` so that an error in it also ends the run's other processes."""

    @functools.wraps(main)
    def wrapped(argv: Sequence[str]) -> Any:
        try:
            return main(argv)
        except (Exception, KeyboardInterrupt, Preempted) as error:
            if not getattr(error, "by_all", False):
                distributed.end_others(error)
            raise

    return wrapped


def check_arguments(argv: Sequence[str]) -> None:
    """Checks that a program which takes only flags was given no other arguments.

    Raises:
      JcmError: names the first argument that is not a flag.
    """
    if len(argv) > 1:
        raise JcmError(f"unknown argument {argv[1]!r}: flags begin with --")


def config() -> ConfigDict | None:
    """Returns the config that the flags select and change, or None without one.

    Raises:
      JcmError: if a value is out of bounds.
    """
    if "config" not in flags.FLAGS:
        return None
    config_lib.check(flags.FLAGS.config)
    return flags.FLAGS.config


def config_name() -> str:
    """Returns the name of the config, such as digits_cd or digits_cd_smoke."""
    return _names["config"]


def _parse(
    recorded: Callable[[str], ConfigDict | None], argv: Sequence[str]
) -> list[str]:
    """Reads the flags; `--config=FILE` comes first, since it defines --config.FIELD.

    Returns:
      The arguments that are not flags.

    Raises:
      JcmError: if a flag is unknown or has a wrong value.
    """
    spec, rest = _take("config", argv)
    workdir, _ = _take("workdir", argv)
    try:
        if spec is not None:
            base = config_lib.load(spec)
            _names["config"] = config_lib.name(spec)
        else:
            base = recorded(workdir) if workdir else None
        if base is not None:
            # Without --config itself, which would need a value of another type.
            config_flags.DEFINE_config_dict("config", base, sys_argv=rest)
        return flags.FLAGS(rest)
    except (AttributeError, KeyError) as error:
        reason = one_line(error)
        raise JcmError(
            f"a --config flag names an unknown field ({reason}): --mode=config prints"
            " all fields"
        ) from error
    except (flags.Error, TypeError, ValueError) as error:
        raise JcmError(one_line(error)) from error


def _take(name: str, argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Returns the value of a flag, or None without it, and all other arguments."""
    value, rest, arguments = None, [], iter(argv)
    for argument in arguments:
        flag, equals, after = argument.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            value = after if equals else next(arguments, "")
        else:
            rest.append(argument)
    return value, rest
