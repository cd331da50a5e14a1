"""Checkpoints of a run: orbax, asynchronous, one item per part of the state.

The parts are items of their own so that a sampler can read the averaged weights
without touching the optimiser. A step's folder appears under its name only when all
of it is written. It holds a checksum of every array, which is compared when the array
is read: what the disk has changed is not taken for what was written.

The position in the data is the step.
"""

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Iterator
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from jcm.run import storage
from jcm.run.checksums import checksums
from jcm.run.state import State
from jcm.runtime import distributed
from jcm.runtime.errors import JcmError

_CHECKSUMS = "checksums"
_RETRY_SECONDS = 2
# For a save, writing and waiting for the other processes: one of them may have failed.
_SAVE_SECONDS = 1200
# Of an array that all devices hold each process may write a piece; none is smaller.
_PIECE_BYTES = 2**20
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
        self._folder = storage.shared_path(workdir) / "checkpoints"
        self._aside = self._folder.with_name("damaged")
        # Each process reads for itself: one that cannot must not leave the others
        # waiting for it. They decide together what to make of it, see `_read`.
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=me,
            active_processes={me},
            barrier_sync_key_prefix=f"reader{me}",
        )
        self._reader = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                create=False, multiprocessing_options=alone
            ),
        )
        self._writer = None
        if keep is not None:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                cleanup_tmp_directories=True,  # what a kill has left half written
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(timeout_secs=_SAVE_SECONDS),
            )
            self._writer = ocp.CheckpointManager(
                self._folder, options=options, handler_registry=_handlers()
            )

    @property
    def latest_step(self) -> int | None:
        """Number of the newest complete checkpoint, or None where there is none.

        Every process must ask, and all get the answer of the first: another may see
        late what was written to shared storage.
        """
        return self._before(np.inf)

    @property
    def steps(self) -> list[int]:
        """Numbers of the complete checkpoints, ascending, as they are on disk now."""
        if self._writer:
            self._writer.wait_until_finished()
        self._reader.reload()
        return sorted(self._reader.all_steps())

    def save(self, state: State) -> None:
        """Begins to write the state.

        Raises:
          JcmError: where there is no room, or this or the save before could not be
            written.
        """
        step = int(state.step)
        with distributed.fail_together():
            self._check_room(step, state)
        parts = {
            name: part for name in _PARTS if (part := getattr(state, name)) is not None
        }
        items = {name: ocp.args.PyTreeSave(part) for name, part in parts.items()}
        sums = {name: checksums(part) for name, part in parts.items()}
        items[_CHECKSUMS] = ocp.args.JsonSave(sums)
        with self._explained(f"cannot save step {step}: {self._room()}"):
            begun = self._writer.save(step, args=ocp.args.Composite(**items))
        if not begun:
            raise JcmError(
                f"step {step} was not saved, for {self._folder} has one as new: move"
                " that away"
            )

    def finish(self) -> None:
        """Waits until what was begun is whole on disk.

        Raises:
          JcmError: where it could not be written.
        """
        with self._explained(f"cannot finish saving: {self._room()}"):
            self._writer.wait_until_finished()

    def restore(self, template: State) -> State | None:
        """The newest state that is whole; None where nothing was ever saved.

        Newer checkpoints that are damaged are moved to WORKDIR/damaged. Where all of
        them are, nothing is moved: the reason may be another.

        Args:
          template: shapes, types and placement of every part.

        Raises:
          JcmError: where there are checkpoints and none can be read.
        """
        names = [name for name in _PARTS if getattr(template, name) is not None]
        templates = {name: getattr(template, name) for name in names}
        damaged: dict[int, JcmError] = {}
        step = self.latest_step
        while step is not None:
            try:
                parts = self._read_twice(step, templates)
            except JcmError as error:
                damaged[step] = error
                step = self._before(step)
                continue
            self._set_aside(damaged)
            count = jax.device_put(np.int32(step), template.step.sharding)
            return State(step=count, **{name: parts.get(name) for name in _PARTS})
        if damaged:
            raise next(iter(damaged.values()))
        return None

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
        if step is None:
            raise JcmError(
                f"there is no checkpoint in {self._folder}: train first, or name the "
                "workdir of a run"
            )
        with distributed.fail_together():
            # A folder may be there that is not whole.
            if step not in (steps := self.steps):
                known = ", ".join(map(str, steps))
                raise JcmError(
                    f"there is no checkpoint of step {step} in {self._folder}, but of"
                    f" {known or 'none'}: set config.sample.step to one of them"
                )
            place = self._folder / str(step)
            if not (place / name).exists():
                raise JcmError(f"{place} has no {name}: name another")
        return self._read(step, {name: template})[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Waits also after an error: what was begun is then whole on disk."""
        try:
            with self._explained(f"cannot finish saving: {self._room()}"):
                self._reader.close()
                if self._writer:
                    self._writer.close()
        except JcmError:
            if kind is None:  # an error under way has the first word
                raise

    def _before(self, step: float) -> int | None:
        """The newest step before another, as process 0 sees it."""
        found = [each for each in self.steps if each < step]
        newest = distributed.from_main(found[-1] if found else -1)
        return None if newest < 0 else newest

    def _read_twice(self, step: int, templates: dict[str, Any]) -> dict[str, Any]:
        """As `_read`; storage may have failed for a moment."""
        try:
            return self._read(step, templates)
        except JcmError as error:
            logging.warning("%s; once more", error)
            time.sleep(_RETRY_SECONDS)
            return self._read(step, templates)

    def _read(self, step: int, templates: dict[str, Any]) -> dict[str, Any]:
        """Some parts, as they were written; fails in every process or in none."""
        path = self._folder / str(step)
        items = {
            name: ocp.args.StandardRestore(template)
            for name, template in templates.items()
        }
        items[_CHECKSUMS] = ocp.args.JsonRestore()
        with (
            distributed.fail_together(),
            self._explained(
                f"cannot read {path}: it is damaged or of another network: take an"
                " earlier step (config.sample.step), or restore it"
            ),
        ):
            found = self._reader.restore(step, args=ocp.args.Composite(**items))
        for name in templates:
            expected, ours = found[_CHECKSUMS].get(name), checksums(found[name])
            if expected != ours:
                raise JcmError(
                    f"{path / name} is damaged: its content is not what was written;"
                    " take an earlier step (config.sample.step), or restore it"
                )
        return {name: found[name] for name in templates}

    def _set_aside(self, damaged: dict[int, JcmError]) -> None:
        for step, error in damaged.items():
            logging.warning("%s", error)
            target = self._aside / str(step)
            if jax.process_index() == 0:
                self._aside.mkdir(parents=True, exist_ok=True)
                # In an object store a folder is there when something is in it.
                (self._aside / "README").write_text(
                    "Checkpoints that could not be read as they were written. Nothing"
                    " uses them.\n"
                )
                tried = 1
                while target.exists():
                    tried += 1
                    target = self._aside / f"{step}_{tried}"
                (self._folder / str(step)).rename(target)
            logging.warning("step %d was moved to %s", step, target)
        if damaged:
            distributed.barrier("damaged checkpoints")
            self._writer.reload()

    def _check_room(self, step: int, state: State) -> None:
        """Before anything is written: orbax's threads fail at length."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        if "://" in os.fspath(self._folder):
            return  # nobody tells
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


def _handlers() -> ocp.DefaultCheckpointHandlerRegistry:
    """What writes the parts of a state.

    By default orbax cuts every array into a piece for each device that holds it, unless
    $JAX_PLATFORMS names GPUs. That takes a program for each piece: seconds, in which no
    step is made.
    """
    arrays = ocp.type_handlers.ArrayHandler(
        # Several processes share the writing, where orbax thinks it worth while.
        use_replica_parallel=None if jax.process_count() > 1 else False,
        min_slice_bytes_for_replica_parallel=_PIECE_BYTES,
    )
    types = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    handlers = ocp.DefaultCheckpointHandlerRegistry()
    for name in _PARTS:
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=types)
        handlers.add(name, ocp.args.PyTreeSave, handler)
    return handlers
