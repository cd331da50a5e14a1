"""Trains, evaluates and samples consistency models.

python -m jcm.main --config=FILE[:smoke] [--workdir=DIR] [--mode=train]
                   [--config.path.to.field=VALUE ...]
"""

import pathlib
import re
from collections.abc import Sequence

from absl import flags, logging
from ml_collections import ConfigDict

from jcm import cli, distributed
from jcm import workdir as workdir_lib
from jcm.errors import JcmError
from jcm.evaluate import evaluate
from jcm.sample import sample
from jcm.search import search
from jcm.train import train

_MODES = ("train", "evaluate", "search", "sample", "config")

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run. By default runs/NAME-OF-THE-CONFIG."
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    _MODES,
    "train: train what is not trained yet, then evaluate; evaluate: pictures and scores"
    " of the newest checkpoint; search: the best noise levels of two steps; sample:"
    " images into files; config: print the settings.",
)


def main(argv: Sequence[str]) -> None:
    """Does what `--mode` says.

    Raises:
      JcmError: for anything the user can mend.
    """
    cli.refuse_arguments(argv)
    config, workdir = _config_and_workdir()
    if _MODE.value == "config":
        print(config)
        return
    distributed.initialize(config)
    logging.info("workdir %s", workdir)
    if _MODE.value == "train":
        train(config, workdir)
    if _MODE.value in ("train", "evaluate"):
        evaluate(config, workdir)
    if _MODE.value == "search":
        search(config, workdir)
    if _MODE.value == "sample":
        sample(config, workdir)


def _config_and_workdir() -> tuple[ConfigDict, pathlib.Path]:
    """What the flags name; each stands in for the other where it can."""
    config, workdir = cli.config(), _WORKDIR.value
    if config is None:
        found = f"{workdir} is not the workdir of a run: " if workdir else ""
        raise JcmError(f"{found}name a config, such as --config=configs/digits_cd.py")
    other = config.sample.model
    if other and _MODE.value == "train":
        raise JcmError(
            "config.sample.model is for --mode=sample, evaluate and search: a training"
            " begins with --config.init.model"
        )
    name = re.sub(r"\W+", "_", other).strip("_") or cli.config_name()
    workdir = pathlib.Path(workdir or f"runs/{name}").expanduser()
    if _MODE.value in ("evaluate", "search", "sample") and not other:
        workdir_lib.refuse_other_settings(workdir, config)
    return config, workdir


def _recorded(workdir: str) -> ConfigDict | None:
    """The config of a run, whatever the mode; its record names an unusable one."""
    folder = pathlib.Path(workdir).expanduser()
    begun = (folder / "run.json").exists()
    return workdir_lib.read(folder).config if begun else None


if __name__ == "__main__":
    cli.run(main, _recorded)
