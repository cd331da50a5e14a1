"""Trains, evaluates and samples consistency models.

python -m jcm.main --config=FILE[:smoke] [--workdir=DIR] [--mode=train]
                   [--config.path.to.field=VALUE ...]
"""

import logging as std_logging
import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from jcm import config as config_lib
from jcm import distributed
from jcm import workdir as workdir_lib
from jcm.errors import JcmError
from jcm.evaluate import evaluate
from jcm.sample import sample
from jcm.train import train

_MODES = ("train", "evaluate", "sample", "config")

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run. By default runs/NAME-OF-THE-CONFIG."
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    _MODES,
    "train: train what is not trained yet, then evaluate; evaluate: pictures and scores"
    " of the newest checkpoint; sample: images into files; config: print the settings.",
)


def main(argv: Sequence[str]) -> None:
    """Does what `--mode` says.

    Raises:
      JcmError: for anything the user can mend.
    """
    if len(argv) > 1:
        raise JcmError(f"{argv[1]!r} is not understood: flags begin with --")
    config, workdir = _config_and_workdir()
    if _MODE.value == "config":
        print(config)
        return
    distributed.initialize()
    logging.info("workdir %s", workdir)
    if _MODE.value == "train":
        train(config, workdir)
    if _MODE.value in ("train", "evaluate"):
        evaluate(config, workdir)
    if _MODE.value == "sample":
        sample(config, workdir)


def _config_and_workdir() -> tuple[config_lib.ConfigDict, pathlib.Path]:
    """What the flags name; each stands in for the other where it can."""
    workdir = _WORKDIR.value
    if "config" in flags.FLAGS:
        return flags.FLAGS.config, pathlib.Path(workdir)
    if workdir is not None and _MODE.value != "train":
        return workdir_lib.read(workdir).config, pathlib.Path(workdir)
    raise JcmError("name a config, such as --config=configs/digits_cd.py")


def _parse(argv: Sequence[str]) -> list[str]:
    """Reads the flags; `--config=FILE` first, since it defines --config.FIELD."""
    rest = []
    spec = None
    arguments = iter(argv)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            spec = value if equals else next(arguments, "")
        else:
            rest.append(argument)
    try:
        if spec is not None:
            config = config_lib.load(spec)
            # Without --config itself, whose value it would not expect.
            config_flags.DEFINE_config_dict("config", config, sys_argv=rest)
            name = pathlib.Path(spec.replace(".py:", "_").removesuffix(".py")).name
            flags.set_default(_WORKDIR, str(pathlib.Path("runs") / name))
        return flags.FLAGS(rest)
    except (AttributeError, KeyError) as error:
        reason = " ".join(str(error.args[0]).replace("\\n", " ").split())
        raise JcmError(
            f"a --config flag names an unknown field, {reason}; --mode=config prints all"
        ) from error
    except (flags.Error, TypeError, ValueError) as error:
        raise JcmError(" ".join(str(error).split())) from error


def _only_ours(record: std_logging.LogRecord) -> bool:
    """Orbax and others tell of every step they take; their warnings are enough."""
    ours = pathlib.Path(record.pathname).parent == pathlib.Path(__file__).parent
    return ours or record.levelno >= std_logging.WARNING


def cli() -> None:
    """The entry point: an error the user can mend is one line and exit code 1."""
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.addFilter(_only_ours)
    handler.setFormatter(std_logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    try:
        app.run(main, flags_parser=_parse)
    except JcmError as error:
        sys.exit(f"jcm: {error}")


if __name__ == "__main__":
    cli()
