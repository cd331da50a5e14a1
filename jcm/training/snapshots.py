"""Snapshots of the power averages of the weights, which are never deleted.

From snapshots at several steps, an average of any width can be computed after the
training (Karras et al. 2024, section 3).
"""

import dataclasses
import os
import pathlib
import shutil
from typing import Any, Self

from ml_collections import ConfigDict

from jcm.run.checkpoints import Checkpoints
from jcm.run.state import State
from jcm.runtime import distributed
from jcm.runtime.errors import JcmError
from jcm.training import averages

FOLDER = "snapshots"
# How orbax names the folder of a step that it has not finished, after the step.
_INCOMPLETE = ".orbax-checkpoint-tmp"


class Snapshots:
    """Writes WORKDIR/snapshots/STEP, in the form of a checkpoint."""

    def __init__(self, config: ConfigDict, workdir: str | os.PathLike):
        """Writes nothing yet.

        Args:
          config: `train.snapshot_every` is the number of steps between two snapshots,
            0 for none; `train.averages` names the averages.
          workdir: the run's folder.
        """
        self._specs = power_averages(config)
        every = config.train.snapshot_every
        self._written = Checkpoints(workdir, 0, FOLDER) if every else None

    def save(self, state: State) -> None:
        """Writes a snapshot, unless a run that was killed has written it.

        It is complete when this returns, so that no checkpoint of the same step or a
        later one can exist without it. Every process must call this.
        """
        if self._written is None:
            return
        # All processes do what process 0 sees.
        if distributed.from_main(int(state.step) in self._written.steps):
            return
        nothing = {f.name: None for f in dataclasses.fields(State) if f.name != "step"}
        averaged = {spec: state.ema_params[spec] for spec in self._specs}
        only = nothing | {"ema_params": averaged}
        self._written.save(dataclasses.replace(state, **only))
        self._written.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        """Closes the folder."""
        if self._written is not None:
            self._written.__exit__(kind, *rest)


def power_averages(config: ConfigDict) -> list[str]:
    """Returns the power averages of a config.

    Raises:
      JcmError: if an average is unknown, or if there are none for the snapshots.
    """
    specs = [spec for spec in config.train.averages if averages.parse(spec).is_power]
    if config.train.snapshot_every and not specs:
        raise JcmError(
            "config.train.snapshot_every needs power averages: add power:0.05 and"
            " power:0.10 to config.train.averages"
        )
    return specs


def remove_incomplete(workdir: pathlib.Path) -> None:
    """Removes snapshots whose writing a kill has ended.

    Only process 0 of the run that holds the workdir may call this.
    """
    for path in (workdir / FOLDER).glob(f"*{_INCOMPLETE}"):
        if path.name.removesuffix(_INCOMPLETE).isdecimal() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
