"""The command line: python -m jcm.main --config=FILE[:smoke] [--workdir=DIR] ..."""

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

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A config file, FILE.py or FILE.py:smoke; see configs/."
)
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
    if _CONFIG.value is not None:
        name = pathlib.Path(flags.FLAGS["config"].config_filename).stem
        mode = flags.FLAGS["config"].config_filename.partition(":")[2]
        default = pathlib.Path("runs") / "_".join(filter(None, (name, mode)))
        return _CONFIG.value, pathlib.Path(_WORKDIR.value or default)
    if _WORKDIR.value is not None and _MODE.value != "train":
        return workdir_lib.read(_WORKDIR.value).config, pathlib.Path(_WORKDIR.value)
    raise JcmError("name a config, such as --config=configs/digits_cd.py")


def _parse(argv: Sequence[str]) -> Sequence[str]:
    """Reads the flags; a config that is not a file here comes from the package."""
    argv = list(argv)
    for i, argument in enumerate(argv):
        flag, _, spec = argument.partition("=")
        if flag in ("--config", "-config") and spec:
            path, _, mode = spec.partition(":")
            argv[i] = f"{flag}={config_lib.find(path)}" + (f":{mode}" if mode else "")
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).strip("'\"").replace("\\n", " ").split())
        raise JcmError(f"{reason}; --mode=config prints all settings") from error


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
