"""Trains, evaluates and samples consistency models.

python -m jcm.main --config=FILE[:smoke] [--workdir=DIR] [--mode=train]
                   [--config.path.to.field=VALUE ...]
"""

import pathlib
import re
from collections.abc import Sequence

from absl import flags, logging
from ml_collections import ConfigDict

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
    "Folder of the run, or gs://BUCKET/RUN. By default runs/NAME-OF-THE-CONFIG.",
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    _MODES,
    "train: train what is not trained yet, then evaluate; evaluate: pictures and scores"
    " of the newest checkpoint; search: the best noise levels of two steps; sample:"
    " images into files; edit: change pictures, as --edit.... says; config: print the"
    " settings.",
)
_EDIT = {
    "task": flags.DEFINE_enum("edit.task", "inpaint", TASKS, "What to do."),
    "input": flags.DEFINE_string("edit.input", "", "A picture, or a folder of some."),
    "output": flags.DEFINE_string("edit.output", "", "Folder for the results."),
    "mask": flags.DEFINE_string("edit.mask", "", "inpaint: white is made anew."),
    "factor": flags.DEFINE_integer(
        "edit.factor", 2, "super_resolve, outpaint: how many times larger."
    ),
    "sigmas": flags.DEFINE_list("edit.sigmas", [], "Noise levels of the steps."),
    "variants": flags.DEFINE_integer("edit.variants", 1, "Results for each picture."),
    "seeds": flags.DEFINE_list("edit.seeds", ["0", "1"], "interpolate: from, to, ..."),
}


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
    settings = workdir_lib.flatten(config.to_dict(), "config.")
    distributed.refuse_differences(
        {"--mode": _MODE.value, "--workdir": str(_WORKDIR.value)}
        | settings
        | versions.versions()
    )
    logging.info("workdir %s", storage.shared(workdir))
    storage.begin(workdir)
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
    storage.push(workdir)
    distributed.wait("the end")


def _request() -> Request:
    """What the flags of --mode=edit say."""
    fields = {name: flag.value for name, flag in _EDIT.items()}
    try:
        fields["sigmas"] = tuple(float(sigma) for sigma in fields["sigmas"])
        fields["seeds"] = tuple(int(seed) for seed in fields["seeds"])
    except ValueError as error:
        raise JcmError(
            f"--edit.sigmas and --edit.seeds are numbers: {error}"
        ) from error
    return Request(**fields)


def _config_and_workdir() -> tuple[ConfigDict, pathlib.Path]:
    """What the flags name; each stands in for the other where it can."""
    config, workdir = cli.config(), _WORKDIR.value
    if config is None:
        found = f"{workdir} is not the workdir of a run: " if workdir else ""
        raise JcmError(f"{found}name a config, such as --config=configs/digits_cd.py")
    other = config.sample.model
    if other and _MODE.value == "train":
        raise JcmError(
            "config.sample.model is for --mode=sample, edit, evaluate and search: a"
            " training begins with --config.init.model"
        )
    name = re.sub(r"\W+", "_", other).strip("_") or cli.config_name()
    workdir = storage.local(workdir or f"runs/{name}")
    if _MODE.value in ("evaluate", "search", "sample", "edit") and not other:
        workdir_lib.refuse_other_settings(workdir, config)
    return config, workdir


def _recorded(workdir: str) -> ConfigDict | None:
    """The config of a run, whatever the mode; its record names an unusable one."""
    folder = storage.local(workdir)
    begun = (folder / "run.json").exists()
    return workdir_lib.read(folder).config if begun else None


if __name__ == "__main__":
    cli.run(main, _recorded)
