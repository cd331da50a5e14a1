"""Trains, evaluates and samples consistency models.

python -m jcm.main --config=FILE[:smoke] [--workdir=DIR] [--mode=train]
                   [--config.path.to.field=VALUE ...]

--mode=config prints the fields of a config. --helpfull also lists the flags for runs of
several processes.
"""

import pathlib
import re
from collections.abc import Sequence

from absl import flags, logging
from ml_collections import ConfigDict

from jcm import config as config_lib
from jcm.commands import cli
from jcm.commands.edit import TASKS, Request, edit
from jcm.commands.evaluate import evaluate
from jcm.commands.sample import sample
from jcm.commands.search import search
from jcm.commands.train import train
from jcm.run import storage
from jcm.run import workdir as workdir_lib
from jcm.runtime import distributed, versions
from jcm.runtime.errors import JcmError

_MODES = ("train", "evaluate", "search", "sample", "edit", "config")

_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run, or gs://BUCKET/RUN. The default is runs/NAME-OF-THE-CONFIG.",
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    _MODES,
    "What to do. train: train or resume, then evaluate. evaluate: write pictures and"
    " scores of a checkpoint. search: find the best noise levels for a few steps."
    " sample: write images to files. edit: edit pictures as the --edit flags say."
    " config: print the config.",
)
_EDIT = {
    "task": flags.DEFINE_enum("edit.task", "inpaint", TASKS, "The edit to make."),
    "input": flags.DEFINE_string(
        "edit.input",
        "",
        "A picture or a folder of pictures; not needed for interpolate.",
    ),
    "output": flags.DEFINE_string(
        "edit.output", "", "New or empty folder for the results."
    ),
    "mask": flags.DEFINE_string(
        "edit.mask", "", "inpaint: a mask, white where the picture is replaced."
    ),
    "factor": flags.DEFINE_integer(
        "edit.factor",
        2,
        "super_resolve and outpaint: how many times larger the result is.",
    ),
    "sigmas": flags.DEFINE_list(
        "edit.sigmas",
        [],
        "Noise level of each step; the default is that of the paper. denoise: the"
        " noise level of the pictures; the default is to estimate it.",
    ),
    "variants": flags.DEFINE_integer(
        "edit.variants", 1, "Number of results for each picture."
    ),
    "seeds": flags.DEFINE_list(
        "edit.seeds", ["0", "1"], "interpolate: seeds of the images to pass through."
    ),
}


def main(argv: Sequence[str]) -> None:
    """Runs the command that `--mode` selects.

    Raises:
      JcmError: for any error that the user can fix.
    """
    cli.check_arguments(argv)
    config, workdir = _config_and_workdir()
    if _MODE.value == "config":
        print(config)
        return
    distributed.initialize(config)
    settings = config_lib.flatten(config, "config.")
    distributed.check_equal(
        {"--mode": _MODE.value, "--workdir": str(_WORKDIR.value)}
        | settings
        | versions.versions()
    )
    logging.info("workdir %s", storage.shared_path(workdir))
    storage.start_uploads(workdir)
    if _MODE.value == "train":
        train(config, workdir)
    if _MODE.value in ("train", "evaluate"):
        evaluate(config, workdir)
    if _MODE.value == "search":
        search(config, workdir)
    if _MODE.value == "sample":
        sample(config, workdir)
    if _MODE.value == "edit":
        edit(config, workdir, _request())
    storage.upload(workdir)
    distributed.barrier("the end")


def _request() -> Request:
    """Returns the request that the --edit flags make."""
    fields = {name: flag.value for name, flag in _EDIT.items()}
    try:
        fields["sigmas"] = tuple(float(sigma) for sigma in fields["sigmas"])
        fields["seeds"] = tuple(int(seed) for seed in fields["seeds"])
    except ValueError as error:
        raise JcmError(
            f"--edit.sigmas and --edit.seeds must be numbers: {error}"
        ) from error
    return Request(**fields)


def _config_and_workdir() -> tuple[ConfigDict, pathlib.Path]:
    """Returns the config and the workdir; each flag can stand in for the other."""
    config, workdir = cli.config(), _WORKDIR.value
    if config is None:
        found = f"{workdir} is not the workdir of a run: " if workdir else ""
        raise JcmError(f"{found}name a config, such as --config=configs/digits_cd.py")
    other = config.sample.model
    if other and _MODE.value == "train":
        raise JcmError(
            "config.sample.model is for --mode=sample, edit, evaluate and search: use"
            " config.init.model to start training from a model"
        )
    name = re.sub(r"\W+", "_", other).strip("_") or cli.config_name()
    workdir = storage.local_folder(workdir or f"runs/{name}")
    if _MODE.value in ("evaluate", "search", "sample", "edit") and not other:
        workdir_lib.check_same_settings(workdir, config)
    return config, workdir


def _recorded_config(workdir: str) -> ConfigDict | None:
    """Returns the config that a workdir records, or None if it holds no run."""
    folder = storage.local_folder(workdir)
    holds_run = (folder / "run.json").exists()
    return workdir_lib.read(folder).config if holds_run else None


if __name__ == "__main__":
    cli.run(main, _recorded_config)
