"""Checkpoints of a run, which orbax writes in the background.

Each part of the state is an item of its own, so that a sampler can read the averaged
weights without the state of the optimizer. The folder of a step appears under its name
when all of it is written. It holds the step, what was logged since the last entry of
the log, and a checksum of this and of every array. They are compared when a part is
read, so that neither a part that the disk has corrupted nor a folder that was renamed
is used.

A checkpoint does not hold the position in the data, which the step determines.
"""

import contextlib
import dataclasses
import errno
import os
import shutil
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from jcm.run import checkpoint_files, orbax_settings, storage
from jcm.run.checksums import checksum_of_json, checksums
from jcm.run.state import State
from jcm.runtime import disk, distributed
from jcm.runtime.errors import JcmError, one_line, shown

_CHECKSUMS, _LOG = "checksums", "log"
_RETRY_SECONDS = 2
# The time limit of a save. It ends the wait for another process that has failed.
_SAVE_SECONDS = 1200
# A longer wait for the last save is logged, in seconds.
_LONG_WAIT = 1
# What a checkpoint needs at least beside its arrays.
_OTHER_BYTES = 2**16
# The step is stored as the name of the checkpoint.
_PARTS = tuple(f.name for f in dataclasses.fields(State) if f.name != "step")


class Saved(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      state: the state.
      log: what had been logged since the last entry, as JSON; see `TrainLog.window`.
    """

    state: State
    log: dict[str, Any]


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

        Raises:
          JcmError: if a file that describes a step is damaged.
        """
        self._folder = storage.shared_path(workdir) / folder
        self._aside = self._folder.with_name("damaged")
        # The processes agree on what each has read, see `_read`.
        options = ocp.CheckpointManagerOptions(
            create=False, multiprocessing_options=orbax_settings.alone()
        )
        with checkpoint_files.explain_listing(self._folder):
            self._reader = ocp.CheckpointManager(self._folder, options=options)
        self._writer: Any = None
        self._saving: int | None = None
        self._keep = keep or 0
        # Steps that are all kept may be saved in any order.
        self._any_order = keep == 0
        if keep is not None:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=keep or None,
                cleanup_tmp_directories=True,  # saves that a kill has interrupted
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(timeout_secs=_SAVE_SECONDS),
            )
            with checkpoint_files.explain_listing(self._folder):
                self._writer = ocp.CheckpointManager(
                    self._folder,
                    options=options,
                    handler_registry=orbax_settings.handlers(_PARTS),
                )
        # Orbax would create the workdir again if it was deleted.
        self._place = _identity(self._folder.parent)

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
        with checkpoint_files.explain_listing(self._folder):
            self._reader.reload()
        # A folder whose name is a larger number is not one of a run.
        return sorted(step for step in self._reader.all_steps() if step < 2**31)

    def save(self, state: State, log: dict[str, Any] | None = None) -> None:
        """Starts saving the state in the background; every process must call this.

        Args:
          state: the state.
          log: what to save beside it, as JSON; None for a state that no run resumes.

        Raises:
          JcmError: if there is too little space, if the step cannot be saved, or if the
            previous save has failed.
        """
        step, started = int(state.step), time.monotonic()
        self.finish()
        waited = time.monotonic() - started
        if waited > _LONG_WAIT:
            logging.info(
                "waited %.1f s for the last checkpoint: with a larger"
                " config.train.checkpoint_every, the training would not wait",
                waited,
            )
        with distributed.fail_together():
            self._check_room(step, state)
        parts = {
            name: part for name in _PARTS if (part := getattr(state, name)) is not None
        }
        items = {name: ocp.args.PyTreeSave(part) for name, part in parts.items()}
        sums: dict[str, Any] = {name: checksums(part) for name, part in parts.items()}
        if log is not None:
            items[_LOG] = ocp.args.JsonSave(log)
            sums[_LOG] = checksum_of_json(log)
        items[_CHECKSUMS] = ocp.args.JsonSave({"step": step} | sums)
        with self._explain_writing(f"cannot save step {step}"):
            saves = self._writer.save(
                step, args=ocp.args.Composite(**items), force=self._any_order
            )
        if not saves:
            raise JcmError(
                f"step {step} was not saved, since {self._folder} has a checkpoint of"
                " this or a later step: move that checkpoint away"
            )
        self._saving = step

    def finish(self) -> None:
        """Waits until the last save is complete.

        Raises:
          JcmError: if it has failed.
        """
        what = "" if self._saving is None else f" step {self._saving}"
        with self._explain_writing(f"cannot save{what}"):
            self._writer.wait_until_finished()
        self._saving = None

    def delete_old(self) -> None:
        """Deletes checkpoints that a run has not deleted before it was killed.

        Every process must call this, once the newest checkpoint is known to be good.
        Where nothing can be written, all stay.
        """
        kept = self._writer.all_steps()[-self._keep :] if self._keep else ()
        if kept and jax.process_index() == 0:
            # The errors of object stores are of many types. The others wait below.
            with contextlib.suppress(Exception):
                for path in self._folder.iterdir():
                    # A folder that was deleted in part is not among the complete ones.
                    if path.name.isdecimal() and int(path.name) < min(kept):
                        with contextlib.suppress(Exception):
                            path.rmtree()
        distributed.barrier("old checkpoints")
        self._writer.reload()

    def restore(self, template: State) -> Saved | None:
        """Returns the newest undamaged checkpoint, or None if there are none.

        Newer checkpoints that are damaged are moved to WORKDIR/damaged. If none can be
        read, nothing is moved, since there may be another reason.

        Args:
          template: the shapes, types and placement of every part.

        Raises:
          JcmError: if there are checkpoints and none can be read.
        """
        names = [name for name in _PARTS if getattr(template, name) is not None]
        templates = {name: getattr(template, name) for name in names} | {_LOG: None}
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
            state = State(step=count, **{name: parts.get(name) for name in _PARTS})
            return Saved(state, parts[_LOG])
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
        failed = None
        try:
            if self._writer:
                self.finish()
        except JcmError as error:
            failed = error
        for each in filter(None, (self._reader, self._writer)):
            # A save that has failed would be reported again.
            with contextlib.suppress(Exception):
                each.close()
        if failed and kind is None:  # otherwise an earlier error is more important
            raise failed

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
            name: (
                ocp.args.JsonRestore()
                if name == _LOG
                else ocp.args.StandardRestore(template)
            )
            for name, template in templates.items()
        }
        items[_CHECKSUMS] = ocp.args.JsonRestore()
        with distributed.fail_together():
            try:
                checkpoint_files.check(path)
                found = self._reader.restore(step, args=ocp.args.Composite(**items))
                written = dict(found[_CHECKSUMS])
            except JcmError:
                raise
            except Exception as error:  # the libraries raise many types
                raise JcmError(
                    f"cannot read {path}, which is damaged or belongs to another"
                    " network: use an earlier step (config.sample.step), or restore the"
                    f" checkpoint ({type(error).__name__}: {one_line(error, 120)})"
                ) from error
        if (named := written.get("step")) != step:
            raise JcmError(
                f"{path / _CHECKSUMS} is damaged: it names no step; use an earlier step"
                " (config.sample.step), or restore it"
                if named is None
                else f"{path} holds step {shown(named)}, since its folder was renamed"
                " or copied: give it the name of its step, or use another one"
                " (config.sample.step)"
            )
        for name in templates:
            sum_of = checksum_of_json if name == _LOG else checksums
            if written.get(name) != sum_of(found[name]):
                raise JcmError(
                    f"{path / name} is damaged: its content has changed since it was"
                    " written; use an earlier step (config.sample.step), or restore it"
                )
        return {name: found[name] for name in templates}

    def _set_aside(self, damaged: dict[int, JcmError]) -> None:
        """Moves the checkpoints of these steps to WORKDIR/damaged.

        Raises:
          JcmError: in every process, if process 0 cannot move them.
        """
        if not damaged:
            return
        with distributed.fail_together():
            for step, error in damaged.items():
                logging.warning("%s", error)
                if jax.process_index() == 0:
                    with self._explain_writing(f"cannot move the damaged step {step}"):
                        target = self._move_aside(step)
                    logging.warning("step %d was moved to %s", step, target)
        self._writer.reload()

    def _move_aside(self, step: int) -> epath.Path:
        """Moves the checkpoint of a step to WORKDIR/damaged; returns its new folder."""
        self._aside.mkdir(parents=True, exist_ok=True)
        # In an object store a folder exists only if something is in it.
        (self._aside / "README").write_text(
            "These checkpoints are damaged. No program uses them.\n"
        )
        target, tried = self._aside / str(step), 1
        while target.exists():
            tried += 1
            target = self._aside / f"{step}_{tried}"
        (self._folder / str(step)).rename(target)
        return target

    def _check_room(self, step: int, state: State) -> None:
        """Checks the folder and the free space before a save.

        Orbax would create the folder of a run again that was deleted.

        Raises:
          JcmError: if there is too little space, or no folder.
        """
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        if "://" in os.fspath(self._folder):
            return  # stores do not report free space
        with self._explain_writing(f"cannot save step {step}"):
            if _identity(self._folder.parent) != self._place:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            self._folder.mkdir(exist_ok=True)
            free = shutil.disk_usage(self._folder).free
        if free < 1.1 * needed + _OTHER_BYTES:
            raise JcmError(
                f"cannot save step {step}: it needs {needed / 2**20:.1f} MiB, and"
                f" {free / 2**20:.1f} MiB are free: free some space in"
                f" {self._folder}; older checkpoints are kept"
            )

    @contextlib.contextmanager
    def _explain_writing(self, what: str) -> Iterator[None]:
        """Turns any error in the block into one line that says what to do."""
        try:
            yield
        except Exception as error:
            what = f"{what} in {self._folder}"
            workdir = self._folder.parent
            if self._place is not None and _identity(workdir) != self._place:
                raise JcmError(
                    f"{what}: {workdir} was moved or deleted while the program ran:"
                    " move it back and run the same command, or use another workdir"
                ) from error
            raise disk.cannot_write(self._folder / "new", error, what) from error


def _identity(folder: epath.Path) -> tuple[int, int] | None:
    """Returns numbers that a folder keeps; None if it is missing or in a store."""
    if "://" in os.fspath(folder):
        return None
    with contextlib.suppress(OSError):
        found = os.stat(folder)
        return found.st_dev, found.st_ino
    return None
