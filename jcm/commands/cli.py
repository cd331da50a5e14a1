"""Flags, log lines and errors, alike in every program of the package."""

import errno
import functools
import logging as std_logging
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from jcm import config as config_lib
from jcm.run import storage
from jcm.runtime import distributed, download, memory, preemption
from jcm.runtime.errors import JcmError, Preempted, one_line

_names = {"config": ""}


def run(
    main: Callable[[Sequence[str]], Any],
    recorded: Callable[[str], ConfigDict | None] = lambda workdir: None,
) -> None:
    """Runs a program; a mistake the user can mend is one line and exit code 1.

    SIGTERM ends it with exit code 75: the same command goes on.

    Args:
      main: takes the arguments that are not flags.
      recorded: the config of a workdir, to stand in where --workdir is given but
        --config is not.
    """
    logging.set_verbosity(logging.INFO)
    memory.use_few_heaps()
    preemption.leave_on_sigterm()
    # The same sampler is needed in training, evaluation and every restart.
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(download.cache("xla")))
    handler = logging.get_absl_handler()
    handler.addFilter(_only_ours)
    handler.setFormatter(std_logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    try:
        app.run(_told(main), flags_parser=functools.partial(_parse, recorded))
    except (JcmError, Preempted) as error:
        print(f"jcm: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = ": make room there" if full else ""
        sys.exit(f"jcm: {name}{error.strerror or error}{remedy}")
    except KeyboardInterrupt:
        sys.exit("jcm: interrupted; a training run goes on where it is started again")
    finally:
        storage.close()


def _told(main: Callable[[Sequence[str]], Any]) -> Callable[[Sequence[str]], Any]:
    """`main`, whose early end is that of the other processes of the run too."""

    @functools.wraps(main)
    def told(argv: Sequence[str]) -> Any:
        try:
            return main(argv)
        except (Exception, KeyboardInterrupt, Preempted) as error:
            if not getattr(error, "by_all", False):
                distributed.tell_others(error)
            raise

    return told


def refuse_arguments(argv: Sequence[str]) -> None:
    """For programs that take flags alone.

    Raises:
      JcmError: names the first argument that is no flag.
    """
    if len(argv) > 1:
        raise JcmError(f"{argv[1]!r} is not understood: flags begin with --")


def config() -> ConfigDict | None:
    """The config that --config names, with its overrides; None without one.

    Raises:
      JcmError: for values that nothing could use.
    """
    if "config" not in flags.FLAGS:
        return None
    config_lib.check(flags.FLAGS.config)
    return flags.FLAGS.config


def config_name() -> str:
    """A name for what is made with the config: digits_cd, or digits_cd_smoke."""
    return _names["config"]


def _parse(
    recorded: Callable[[str], ConfigDict | None], argv: Sequence[str]
) -> list[str]:
    """Reads the flags; `--config=FILE` first, since it defines --config.FIELD."""
    spec, rest = _take("config", argv)
    workdir, _ = _take("workdir", argv)
    try:
        if spec is not None:
            base = config_lib.load(spec)
            path, _, mode = spec.partition(":")
            stem = pathlib.Path(path).stem
            _names["config"] = f"{stem}_{mode}" if mode else stem
        else:
            base = recorded(workdir) if workdir else None
        if base is not None:
            # Without --config itself, whose value it would not expect.
            config_flags.DEFINE_config_dict("config", base, sys_argv=rest)
        return flags.FLAGS(rest)
    except (AttributeError, KeyError) as error:
        reason = one_line(error)
        raise JcmError(
            f"a --config flag names an unknown field, {reason}: see --mode=config"
        ) from error
    except (flags.Error, TypeError, ValueError) as error:
        raise JcmError(one_line(error)) from error


def _take(name: str, argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of one flag, None where it is not given, and all other arguments."""
    value, rest, arguments = None, [], iter(argv)
    for argument in arguments:
        flag, equals, after = argument.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            value = after if equals else next(arguments, "")
        else:
            rest.append(argument)
    return value, rest


def _only_ours(record: std_logging.LogRecord) -> bool:
    """Orbax and others tell of every step they take; their warnings are enough."""
    ours = pathlib.Path(__file__).parents[1] in pathlib.Path(record.pathname).parents
    return ours or record.levelno >= std_logging.WARNING
