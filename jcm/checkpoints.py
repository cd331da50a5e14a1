"""Checkpoints of a run: orbax, asynchronous, one item per part of the state.

The parts are items of their own so that a sampler can read the averaged weights
without touching the optimiser. A step's folder appears under its name only when all
of it is written.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any, Self

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp

from jcm.errors import JcmError
from jcm.state import State

_DATA = "data"
# The step is the name of the checkpoint.
_PARTS = tuple(f.name for f in dataclasses.fields(State) if f.name != "step")


class Checkpoints:
    """The checkpoints of one workdir."""

    def __init__(self, workdir: str | os.PathLike, keep: int | None = None):
        """Opens them; the folder is made at the first save.

        Args:
          workdir: of the run.
          keep: how many of the newest to keep; None opens them for reading only.
        """
        self._folder = pathlib.Path(workdir).absolute() / "checkpoints"
        writes = keep is not None
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=writes,
            cleanup_tmp_directories=writes,  # what a kill has left half written
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    @property
    def latest_step(self) -> int | None:
        """Number of the newest complete checkpoint, or None where there is none."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """Numbers of the complete checkpoints, ascending, as they are on disk now."""
        self._manager.reload()
        return sorted(self._manager.all_steps())

    def save(self, state: State, data: grain.DatasetIterator) -> None:
        """Begins to write the state and the position in the data.

        Raises:
          JcmError: where there is no room, or this or the save before could not be
            written.
        """
        step = int(state.step)
        self._check_room(step, state)
        items = {
            name: ocp.args.StandardSave(part)
            for name in _PARTS
            if (part := getattr(state, name)) is not None
        }
        items[_DATA] = grain.checkpoint.CheckpointSave(data)
        with self._explained(f"cannot save step {step}: {self._room()}"):
            self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, template: State, data: grain.DatasetIterator) -> State:
        """The newest state, and `data` put where it was then.

        Args:
          template: shapes, types and placement of every part.
          data: the iterator to move.

        Raises:
          JcmError: where the checkpoint is damaged or belongs to another network.
        """
        items = {
            name: ocp.args.StandardRestore(part)
            for name in _PARTS
            if (part := getattr(template, name)) is not None
        }
        items[_DATA] = grain.checkpoint.CheckpointRestore(data)
        parts = self._restore(items, self.latest_step)
        step = jax.device_put(np.int32(self.latest_step), template.step.sharding)
        return State(step=step, **{name: parts.get(name) for name in _PARTS})

    def restore_part(self, name: str, template: Any, step: int | None = None) -> Any:
        """One part of a state: `params`, `ema_params`, `target_params`.

        Args:
          name: of the part.
          template: its shapes, types and placement.
          step: of the checkpoint; None for the newest.

        Raises:
          JcmError: where the checkpoint is missing, has no such part or is damaged.
        """
        step = self.latest_step if step is None else step
        if step is not None and not (self._folder / str(step)).is_dir():
            known = ", ".join(map(str, self.steps))
            raise JcmError(
                f"there is no checkpoint of step {step} in {self._folder}, but of"
                f" {known or 'none'}: set config.sample.step to one of them"
            )
        if step is not None and not (self._folder / str(step) / name).exists():
            raise JcmError(f"{self._folder / str(step)} has no {name}: name another")
        return self._restore({name: ocp.args.StandardRestore(template)}, step)[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Waits also after an error: what was begun is then whole on disk."""
        try:
            with self._explained(f"cannot finish saving: {self._room()}"):
                self._manager.close()
        except JcmError:
            if kind is None:  # an error under way has the first word
                raise

    def _restore(self, items: dict[str, Any], step: int | None) -> Any:
        if step is None:
            raise JcmError(
                f"there is no checkpoint in {self._folder}: train first, or name the "
                "workdir of a run"
            )
        path = self._folder / str(step)
        remedy = (
            "it is damaged or of another network: restore it, or move this folder away"
        )
        with self._explained(f"cannot read {path}: {remedy}"):
            return self._manager.restore(step, args=ocp.args.Composite(**items))

    def _check_room(self, step: int, state: State) -> None:
        """Before anything is written: orbax's threads fail at length."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        self._folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._folder).free
        if free < 1.1 * needed:
            raise JcmError(
                f"cannot save step {step}: it takes {needed / 2**20:.0f} MiB and"
                f" {free / 2**20:.0f} are free: {self._room()}"
            )

    def _room(self) -> str:
        """What to do when writing fails."""
        return f"make room in {self._folder}, whose older checkpoints are kept"

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turns whatever orbax raises into one line."""
        try:
            yield
        except Exception as error:
            reason = str(error).strip().split("\n")[0][:120]
            raise JcmError(f"{what} ({type(error).__name__}: {reason})") from error
