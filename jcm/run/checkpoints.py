"""Checkpoints of a run, which orbax writes in the background.

Each part of the state is an item of its own, so that a sampler can read the averaged
weights without the state of the optimizer. The folder of a step appears under its name
when all of it is written. It holds a checksum of every array, which is compared when
the array is read, so that an array that the disk has corrupted is not used.

A checkpoint does not hold the position in the data, which the step determines.
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
from jcm.run.leaks import stop_leaks
from jcm.run.state import State
from jcm.runtime import distributed
from jcm.runtime.errors import JcmError, one_line

stop_leaks()

_CHECKSUMS = "checksums"
_RETRY_SECONDS = 2
# The time limit of a save. It ends the wait for another process that has failed.
_SAVE_SECONDS = 1200
# The least part of a replicated array that a process writes for the others.
_PIECE_BYTES = 2**20
# The step is stored as the name of the checkpoint.
_PARTS = tuple(f.name for f in dataclasses.fields(State) if f.name != "step")


class Checkpoints:
    """The checkpoints of one workdir, or its snapshots."""

    def __init__(
        self,
        workdir: str | os.PathLike,
        keep: int | None = None,
        folder: str = "checkpoints",
    ):
        """Opens the checkpoints of a run; the first save creates the folder.

        Args:
          workdir: the run's folder.
          keep: how many of the newest checkpoints to keep, 0 for all; None opens them
            read-only.
          folder: name of the folder within the workdir.
        """
        self._folder = storage.shared_path(workdir) / folder
        self._aside = self._folder.with_name("damaged")
        # Each process reads independently, so that none waits forever for one that
        # fails. The processes then agree on the result, see `_read`.
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
        self._writer: Any = None
        # Steps that are all kept may be saved in any order.
        self._any_order = keep == 0
        if keep is not None:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=keep or None,
                cleanup_tmp_directories=True,  # saves that a kill has interrupted
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(timeout_secs=_SAVE_SECONDS),
            )
            self._writer = ocp.CheckpointManager(
                self._folder, options=options, handler_registry=_handlers()
            )

    @property
    def latest_step(self) -> int | None:
        """The newest step with a complete checkpoint; None if there is none.

        Every process must read this property. All get the answer of process 0, since
        others may see new files on shared storage later.
        """
        return self._newest_before(np.inf)

    @property
    def steps(self) -> list[int]:
        """The steps that have complete checkpoints on disk now, in ascending order."""
        if self._writer:
            self._writer.wait_until_finished()
        self._reader.reload()
        return sorted(self._reader.all_steps())

    def save(self, state: State) -> None:
        """Starts saving the state in the background; every process must call this.

        Raises:
          JcmError: if there is too little space, if the step cannot be saved, or if the
            previous save has failed.
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
        with self._explain_errors(f"cannot save step {step}: {self._remedy()}"):
            started = self._writer.save(
                step, args=ocp.args.Composite(**items), force=self._any_order
            )
        if not started:
            raise JcmError(
                f"step {step} was not saved, since {self._folder} has a checkpoint of"
                " this or a later step: move that checkpoint away"
            )

    def finish(self) -> None:
        """Waits until the last save is complete.

        Raises:
          JcmError: if it has failed.
        """
        with self._explain_errors(f"cannot finish saving: {self._remedy()}"):
            self._writer.wait_until_finished()

    def restore(self, template: State) -> State | None:
        """Returns the newest undamaged state, or None if there are no checkpoints.

        Newer checkpoints that are damaged are moved to WORKDIR/damaged. If none can be
        read, nothing is moved, since there may be another reason.

        Args:
          template: the shapes, types and placement of every part.

        Raises:
          JcmError: if there are checkpoints and none can be read.
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
                step = self._newest_before(step)
                continue
            self._set_aside(damaged)
            count = jax.device_put(np.int32(step), template.step.sharding)
            return State(step=count, **{name: parts.get(name) for name in _PARTS})
        if damaged:
            raise next(iter(damaged.values()))
        return None

    def restore_part(self, name: str, template: Any, step: int | None = None) -> Any:
        """Returns one part of a saved state.

        Args:
          name: of the part, a field of `State`.
          template: the shapes, types and placement of the part.
          step: the step of the checkpoint; None for the newest.

        Raises:
          JcmError: if the checkpoint is missing, lacks the part, or is damaged.
        """
        step = self.latest_step if step is None else step
        if step is None:
            raise JcmError(
                f"there is no checkpoint in {self._folder}: train first, or name the"
                " workdir of a run"
            )
        with distributed.fail_together():
            # The folder of a step may exist and be incomplete.
            if step not in (steps := self.steps):
                known = ", ".join(map(str, steps))
                raise JcmError(
                    f"there is no checkpoint of step {step} in {self._folder}"
                    f" (available: {known or 'none'}): set step, or"
                    " config.sample.step, to one of these"
                )
            place = self._folder / str(step)
            if not (place / name).exists():
                raise JcmError(f"{place} has no {name}: choose another part")
        return self._read(step, {name: template})[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Waits until the last save is complete, even after an error."""
        try:
            with self._explain_errors(f"cannot finish saving: {self._remedy()}"):
                self._reader.close()
                if self._writer:
                    self._writer.close()
        except JcmError:
            if kind is None:  # otherwise an earlier error is more important
                raise

    def _newest_before(self, step: float) -> int | None:
        """Returns the newest step before `step` that process 0 sees, or None."""
        found = [each for each in self.steps if each < step]
        newest = distributed.from_main(found[-1] if found else -1)
        return None if newest < 0 else newest

    def _read_twice(self, step: int, templates: dict[str, Any]) -> dict[str, Any]:
        """Reads like `_read`, and tries again once, since storage may fail briefly."""
        try:
            return self._read(step, templates)
        except JcmError as error:
            logging.warning("%s; trying again", error)
            time.sleep(_RETRY_SECONDS)
            return self._read(step, templates)

    def _read(self, step: int, templates: dict[str, Any]) -> dict[str, Any]:
        """Reads parts of a step and compares their checksums, in all processes or none.

        Raises:
          JcmError: in every process, if a part cannot be read or is damaged.
        """
        path = self._folder / str(step)
        items = {
            name: ocp.args.StandardRestore(template)
            for name, template in templates.items()
        }
        items[_CHECKSUMS] = ocp.args.JsonRestore()
        with (
            distributed.fail_together(),
            self._explain_errors(
                f"cannot read {path}, which is damaged or belongs to another network:"
                " use an earlier step (config.sample.step), or restore the checkpoint"
            ),
        ):
            found = self._reader.restore(step, args=ocp.args.Composite(**items))
        for name in templates:
            expected, ours = found[_CHECKSUMS].get(name), checksums(found[name])
            if expected != ours:
                raise JcmError(
                    f"{path / name} is damaged: its content has changed since it was"
                    " written; use an earlier step (config.sample.step), or restore it"
                )
        return {name: found[name] for name in templates}

    def _set_aside(self, damaged: dict[int, JcmError]) -> None:
        """Moves the checkpoints of these steps to WORKDIR/damaged."""
        for step, error in damaged.items():
            logging.warning("%s", error)
            target = self._aside / str(step)
            if jax.process_index() == 0:
                self._aside.mkdir(parents=True, exist_ok=True)
                # In an object store a folder exists only if something is in it.
                (self._aside / "README").write_text(
                    "These checkpoints are damaged. No program uses them.\n"
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
        """Checks the free space before a save, since orbax's own errors are long.

        Raises:
          JcmError: if there is too little.
        """
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        if "://" in os.fspath(self._folder):
            return  # stores do not report free space
        self._folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._folder).free
        if free < 1.1 * needed:
            raise JcmError(
                f"cannot save step {step}: it needs {needed / 2**20:.0f} MiB, but only"
                f" {free / 2**20:.0f} MiB are free: {self._remedy()}"
            )

    def _remedy(self) -> str:
        """Returns what to do if writing fails."""
        return f"free some space in {self._folder}; older checkpoints are kept"

    @contextlib.contextmanager
    def _explain_errors(self, what: str) -> Iterator[None]:
        """Turns any error in the block into one line."""
        try:
            yield
        except Exception as error:
            reason = one_line(error, 120)
            raise JcmError(f"{what} ({type(error).__name__}: {reason})") from error


def _handlers() -> ocp.DefaultCheckpointHandlerRegistry:
    """Returns the handlers that write the parts of a state.

    By default, unless $JAX_PLATFORMS names GPUs, orbax cuts every array into a piece
    for each device that holds it. Each piece needs a compiled program, which would
    stop the training for seconds.
    """
    arrays = ocp.type_handlers.ArrayHandler(
        # With several processes, orbax decides whether they share the writing.
        use_replica_parallel=None if jax.process_count() > 1 else False,
        min_slice_bytes_for_replica_parallel=_PIECE_BYTES,
    )
    types = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    handlers = ocp.DefaultCheckpointHandlerRegistry()
    for name in _PARTS:
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=types)
        handlers.add(name, ocp.args.PyTreeSave, handler)
    return handlers
