"""The command that trains: prepare, then sample, save, score and step in a loop."""

import functools
import os
from typing import NoReturn

from ml_collections import ConfigDict

from jcm.data import Dataset
from jcm.run import storage
from jcm.run.state import State
from jcm.runtime.errors import Preempted
from jcm.training.prepare import prepare
from jcm.training.run import Run, due


def train(
    config: ConfigDict,
    workdir: str | os.PathLike,
    dataset: Dataset | None = None,
    *,
    teacher: bool = False,
) -> None:
    """Trains a model, or resumes a training that stopped earlier.

    Writes checkpoints, metrics and sample grids into `workdir`. Returns at once if the
    run is complete.

    Args:
      config: the whole config.
      workdir: the run's folder, on storage that all processes share, or
        gs://BUCKET/RUN.
      dataset: what to train on; by default what `config.data` names.
      teacher: whether this is the training of another run's teacher, which
        `config.teacher_train` of that run changes.

    Raises:
      JcmError: for settings, data or a workdir that cannot be used, and for a loss
        that is not finite.
      Preempted: after SIGTERM or Ctrl-C, once the state is saved.
    """
    workdir = storage.local_folder(workdir)
    section = "teacher_train" if teacher else ""
    train_teacher = functools.partial(train, dataset=dataset, teacher=True)
    with prepare(config, workdir, train_teacher, dataset, section) as run:
        if run is None:
            return
        _loop(run)
    storage.upload(workdir)


def _loop(run: Run) -> None:
    """Takes the steps that are left.

    The order of sampling, saving, scoring and stepping makes resuming exact: what is
    saved is the state between two steps.
    """
    settings, log = run.config.train, run.log
    total, first_step = settings.num_steps, int(run.state.step)
    state, saved_step = run.state, run.saved_step
    for step in range(first_step, total + 1):
        last, resumed = step == total, step == first_step
        if log.settles_first:
            log.settle()
        if run.stops() and not last:
            _stop(run, state, step, saved_step)
        if not resumed and (last or due(step, settings.sample_every)):
            log.settle()
            with run.progress.pause():
                run.preview.write(state)
        # Also after a resume: a signal saves a step before its snapshot is made.
        if due(step, settings.snapshot_every):
            log.settle()
            with run.progress.pause():
                # Several processes meet at the same barriers in all saves, so there
                # must be one save at a time.
                run.checkpoints.finish()
                run.snapshots.save(state)
        if not resumed and (last or due(step, settings.checkpoint_every)):
            # Raises before anything that is not finite is saved.
            log.settle()
            with run.progress.pause():
                storage.upload(run.workdir)
                run.checkpoints.save(state, log.window)
            saved_step = step
        # Scoring comes after saving because it takes long: after a kill, the next
        # start repeats it from the checkpoint.
        if due(step, run.score_every) and (run.score_first or not resumed):
            log.settle()
            with run.progress.pause():
                run.preview.score(state, run.score_groups)
        if last:
            break
        # The devices compute the step before while this batch is made and sent.
        batch, waited = run.next_batch()
        run.profile.before(step + 1)
        state, metrics = run.train_step(state, run.frozen, batch)
        run.profile.after(step + 1, metrics)
        log.add(step + 1, metrics, waited)


def _stop(run: Run, state: State, step: int, saved_step: int) -> NoReturn:
    """Saves the state after a step, and ends the run.

    Args:
      run: the run.
      state: after the step.
      step: the number of steps that are done.
      saved_step: the newest step that is on disk.

    Raises:
      Preempted: always.
    """
    run.log.settle()
    if step > saved_step:
        run.checkpoints.save(state, run.log.window)
    run.checkpoints.finish()
    done = f"after step {step}, which is saved" if step else "before the first step"
    raise Preempted(
        f"stopped by {run.preemption.cause} {done}: run the same command again to"
        " resume",
        by_all=True,
    )
