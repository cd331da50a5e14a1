"""Trains, evaluates and samples consistency models.

jcm COMMAND [--FLAG=VALUE ...], or python -m jcm.main --mode=COMMAND [--FLAG=VALUE ...]

`jcm --help` lists the commands.
"""

import argparse
import importlib
import pathlib
import re

from absl import logging
from ml_collections import ConfigDict

from jcm.commands import cli, flags
from jcm.runtime import large_pages
from jcm.runtime.errors import JcmError

# The commands that use what an earlier start has saved.
_RESUME = ("train", "evaluate", "search", "sample")
# The modules of commands that have a `main(arguments)`.
_MODULES = {
    "convert": "convert",
    "demo": "demo.server",
    "config": "config",
    "benchmark speed": "benchmark.speed",
    "benchmark latency": "benchmark.latency",
    "benchmark input": "benchmark.input",
    "benchmark scores": "benchmark.scores",
    "benchmark editing": "benchmark.editing",
}


def main(arguments: argparse.Namespace) -> None:
    """Runs the command that the flags select.

    A command is imported when it is used, since JAX takes seconds to import.

    Args:
      arguments: what `cli.parse` returns.

    Raises:
      JcmError: for any error that the user can fix.
    """
    if arguments.command == "config":
        _main_of(arguments)
        return
    if "config" in arguments:
        cli.required_config(arguments)
    with cli.on_devices(resumes=arguments.command in _RESUME):
        if arguments.command in _MODULES:
            _main_of(arguments)
        else:
            _work_on_a_run(arguments)


def _main_of(arguments: argparse.Namespace) -> None:
    """Runs a command that needs no run."""
    module = importlib.import_module(f"jcm.commands.{_MODULES[arguments.command]}")
    module.main(arguments)


def _work_on_a_run(arguments: argparse.Namespace) -> None:
    """Joins the processes of a run, and runs a command in its workdir."""
    from jcm import config as config_lib
    from jcm.commands import unused
    from jcm.commands.edit import Request, edit
    from jcm.commands.evaluate import check, evaluate
    from jcm.commands.sample import sample
    from jcm.commands.search import search
    from jcm.commands.train import train
    from jcm.run import storage
    from jcm.runtime import distributed, versions

    command = arguments.command
    config, workdir = _config_and_workdir(arguments)
    distributed.initialize(config, **flags.values(arguments, flags.PROCESSES))
    distributed.check_equal(
        {"the command": command, "--workdir": str(arguments.workdir)}
        | config_lib.flatten(config, "config.")
        | {f"{name} (version)": each for name, each in versions.versions().items()}
    )
    logging.info("workdir %s", storage.shared_path(workdir))
    storage.begin(workdir)
    given = arguments.given
    if command == "train":
        unused.check_training(config, given)
        check(config)
        train(config, workdir)
    if command in ("train", "evaluate"):
        evaluate(config, workdir, given, getattr(arguments, "samples", ""))
    if command == "search":
        search(config, workdir, given)
    if command == "sample":
        sample(config, workdir, given)
    if command == "edit":
        request = Request(**flags.values(arguments, flags.EDIT))
        edit(config, workdir, request, given)
    storage.upload(workdir)
    distributed.barrier("the end")


def _config_and_workdir(
    arguments: argparse.Namespace,
) -> tuple[ConfigDict, pathlib.Path]:
    """Returns the config and the workdir; each flag can stand in for the other."""
    from jcm.run import storage
    from jcm.run import workdir as workdir_lib

    config = cli.required_config(arguments)
    other = config.sample.model
    if other and arguments.command == "train":
        raise JcmError(
            "config.sample.model is for jcm sample, edit, evaluate and search: use"
            " config.init.model to start training from a model"
        )
    name = re.sub(r"\W+", "_", other).strip("_") or arguments.config_name
    workdir = storage.local_folder(arguments.workdir or f"runs/{name}")
    # Pictures of other programs need no run.
    alone = getattr(arguments, "samples", "") and not (workdir / "run.json").exists()
    if arguments.command != "train" and not other and not alone:
        workdir_lib.check_same_settings(workdir, config)
    return config, workdir


def command_line() -> None:
    """Runs the program with the arguments of the command line."""
    large_pages.restart("jcm", "jcm.main")
    cli.run(main)


if __name__ == "__main__":
    command_line()
