"""Prepares everything that the training loop needs, from a config and a workdir."""

import contextlib
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from absl import logging
from clu.parameter_overview import get_parameter_overview
from ml_collections import ConfigDict

from jcm import data, methods, networks
from jcm.data.records import Batch
from jcm.methods import Frozen
from jcm.run import lease, storage, writers
from jcm.run import workdir as workdir_lib
from jcm.run.checkpoints import Checkpoints
from jcm.run.progress import Progress
from jcm.run.state import State
from jcm.runtime import (
    distributed,
    files,
    markdown,
    memory,
    preemption,
    sharding,
)
from jcm.runtime.arrays import check_finite
from jcm.runtime.errors import Preempted
from jcm.training import memory_plan, short, snapshots, start
from jcm.training import setup as setup_lib
from jcm.training.log import TrainLog, Window
from jcm.training.preview import SCORE_PREFIX, Preview
from jcm.training.run import Run, due
from jcm.training.setup import Setup, Train
from jcm.training.snapshots import Snapshots
from jcm.training.step import compile_step

# The file of a workdir with the names and shapes of all parameters.
_PARAMETERS = "parameters.txt"


@contextlib.contextmanager
def prepare(
    config: ConfigDict,
    workdir: pathlib.Path,
    train: Train,
    dataset: data.Dataset | None = None,
    section: str = "",
) -> Iterator[Run | None]:
    """Opens a run: a new one, or one that stopped earlier.

    Everything that can be wrong with the settings is checked before the workdir is
    touched and before the long work begins. The workdir is held until the end of the
    block, so that no other run trains in it.

    Args:
      config: the whole config.
      workdir: the run's folder, from `storage.local_folder`.
      train: trains a teacher, if the config asks for one to be trained first.
      dataset: what to train on; by default what `config.data` names.
      section: where the length of the run is set, see `short.warnings`.

    Yields:
      The run; None if it is complete.

    Raises:
      JcmError: for settings, data or a workdir that cannot be used.
    """
    setup = setup_lib.check(config, workdir, train, dataset)
    names, fingerprint = setup.dataset.class_names, setup.dataset.fingerprint
    with contextlib.ExitStack() as stack:
        stack.enter_context(lease.hold(workdir))
        record = workdir_lib.Record(config, names, fingerprint)
        workdir_lib.claim(workdir, record, section or "train")
        # From here on, signals are only noted until the last checkpoint is complete.
        watch = stack.enter_context(preemption.Watch())
        checkpoints = stack.enter_context(
            Checkpoints(workdir, keep=config.train.keep_checkpoints)
        )
        saved_step = _saved_step(setup, checkpoints)
        if jax.process_index() == 0:  # a snapshot that a kill has interrupted
            snapshots.remove_incomplete(workdir)
        if _is_complete(setup, saved_step, workdir):
            checkpoints.delete_old()
            logging.info(
                "%s is complete: %d steps", storage.shared_path(workdir), saved_step
            )
            yield None
            return
        yield _open(setup, workdir, checkpoints, watch, saved_step, section, stack)


def _open(
    setup: Setup,
    workdir: pathlib.Path,
    checkpoints: Checkpoints,
    watch: preemption.Watch,
    saved_step: int | None,
    section: str,
    stack: contextlib.ExitStack,
) -> Run:
    """Returns a run that is not complete; `stack` closes what it opens."""
    config, names = setup.config, setup.dataset.class_names
    workdir_lib.record_start(workdir, saved_step or 0)
    for text in short.warnings(config, setup.program.method, section):
        logging.warning("%s", text)
    frozen = _load_frozen(setup, workdir)
    train_step = _compile(setup)
    _check_not_stopped(watch)  # a large step takes minutes to compile
    state, window = _load_state(setup, checkpoints, frozen)
    checkpoints.delete_old()
    first_step = int(state.step)
    # Check this before the writer below drops what was logged after this step.
    score_first = saved_step is not None and _lacks_scores(
        workdir, first_step, setup.score_every
    )
    batches = _batches(setup, first_step)
    # Do this before the clock of the progress starts, since it can take minutes.
    for group in setup.score_groups:
        group.prepare()
    writer, progress, log = _open_log(setup, workdir, first_step, window, stack)
    return Run(
        config=config,
        workdir=workdir,
        state=state,
        # An older checkpoint was restored if the newest is damaged.
        saved_step=first_step if saved_step is not None else 0,
        score_every=setup.score_every,
        score_first=score_first,
        train_step=train_step,
        frozen=frozen,
        batches=batches,
        batch_sharding=setup.program.batch_sharding,
        preemption=watch,
        checkpoints=checkpoints,
        snapshots=stack.enter_context(Snapshots(config, workdir)),
        log=log,
        progress=progress,
        profile=stack.enter_context(contextlib.closing(setup.profile)),
        preview=Preview(config, workdir, setup.program, names, writer),
        score_groups=setup.score_groups,
    )


def _saved_step(setup: Setup, checkpoints: Checkpoints) -> int | None:
    """Returns the step of the newest checkpoint, or None.

    If it is the last step, checkpoints that cannot be read are skipped.
    """
    latest = checkpoints.latest_step
    if (latest or 0) < setup.config.train.num_steps:
        return latest
    saved = checkpoints.restore(setup.program.state)
    return None if saved is None else int(saved.state.step)


def _is_complete(setup: Setup, saved_step: int | None, workdir: pathlib.Path) -> bool:
    """Returns whether all steps are done, and the last one is scored if that is due."""
    total = setup.config.train.num_steps
    return saved_step == total and not _lacks_scores(workdir, total, setup.score_every)


def _lacks_scores(workdir: pathlib.Path, step: int, every: int) -> bool:
    """Returns whether scores that were due at a step are missing.

    Every process must call this.
    """
    if not due(step, every):
        return False
    return not distributed.from_main(writers.has_scalars(workdir, step, SCORE_PREFIX))


def _load_frozen(setup: Setup, workdir: pathlib.Path) -> Frozen:
    """Puts the teachers and the constants of the loss on the devices."""
    method = setup.program.method
    teachers = {name: teacher.load() for name, teacher in setup.teachers.items()}
    hashes = {name: networks.fingerprint(found) for name, found in teachers.items()}
    if hashes:
        distributed.check_equal(
            {f"the weights of the teacher {name}": hashes[name] for name in hashes}
        )
        workdir_lib.claim_teachers(workdir, setup.config, hashes)
    _write_parameters(setup.program.network, workdir)
    place = jax.tree.map(lambda leaf: leaf.sharding, setup.program.frozen)
    return jax.device_put(Frozen(teachers=teachers, constants=method.constants), place)


def _write_parameters(network: networks.Network, workdir: pathlib.Path) -> None:
    """Writes the names and shapes of the parameters, and logs their number."""
    if jax.process_index() == 0:
        overview = get_parameter_overview(network.shapes, include_stats=False)
        files.write_text(workdir / _PARAMETERS, f"{overview}\n")
    count = sum(leaf.size for leaf in jax.tree.leaves(network.shapes))
    logging.info(
        "the network has %s parameters, listed in %s", f"{count:,}", _PARAMETERS
    )


def _compile(setup: Setup) -> jax.stages.Compiled:
    """Compiles the step, and checks that it fits into memory."""
    config, made = setup.config, setup.program
    with (
        distributed.fail_together(),
        memory_plan.explain_exhaustion(config, jax.devices()),
    ):
        train_step = compile_step(made.traced)
    if made.mesh.shape["fsdp"] > 1:
        logging.info("%s", sharding.overview(made.state))
    plan = memory_plan.make(
        made.state, made.frozen, made.batch, train_step, setup.memory_limit
    )
    logging.info("%s", plan)
    with distributed.fail_together():
        memory_plan.check(plan, config)
    memory_plan.keep(plan)
    return train_step


def _check_not_stopped(watch: preemption.Watch) -> None:
    """Checks that no process is asked to stop; every process must call this.

    Raises:
      Preempted: in every process, if one is.
    """
    if distributed.gather(np.bool_(watch.received)).any():
        raise Preempted(
            f"stopped by {watch.cause} before the first step of this start: run the"
            " same command again to resume",
            by_all=True,
        )


def _load_state(
    setup: Setup, checkpoints: Checkpoints, frozen: Frozen
) -> tuple[State, Window]:
    """Returns the state of the newest checkpoint, or that before the first step.

    Beside it, returns what had been logged since the last entry.

    Raises:
      JcmError: if there are checkpoints and none can be used.
    """
    made = setup.program
    saved = checkpoints.restore(made.state)
    if saved is not None:
        logging.info("resuming from step %d", saved.state.step)
        where = f"the checkpoint of step {saved.state.step}"
        return _finite(saved.state), Window.of(saved.log, where)
    begins_with = methods.recipe(setup.config.method).begins_with
    if begins_with is None:
        weights = jax.jit(made.network.init)(made.init_key)
    else:
        weights = frozen.teachers[begins_with]
    state = start.first_state(
        setup.config, made.network, made.new_state, made.state, weights
    )
    del weights
    memory.release()
    return _finite(state), Window()


def _finite(state: State) -> State:
    """Returns a state whose weights are finite.

    Raises:
      JcmError: in every process, if a weight is not: averages would stay infinite.
    """
    with distributed.fail_together():
        check_finite(state, "delete this checkpoint, or start from another model")
    return state


def _batches(setup: Setup, first_step: int) -> Iterator[Batch]:
    """Returns this process's part of every batch from `first_step` on."""
    config, sharding_of_batch = setup.config, setup.program.batch_sharding
    return data.batches(
        setup.dataset,
        config.train.batch_size,
        seed=config.seed,
        flip=config.data.flip,
        first=first_step,
        rows=sharding.rows(sharding_of_batch, config.train.batch_size),
        workers=config.data.workers,
    )


def _open_log(
    setup: Setup,
    workdir: pathlib.Path,
    first_step: int,
    window: Window,
    stack: contextlib.ExitStack,
) -> tuple[writers.MetricWriter, Progress, TrainLog]:
    """Opens the objects that report on the run; `stack` closes them."""
    settings, is_main = setup.config.train, jax.process_index() == 0
    writer = writers.create(workdir, resume_step=first_step, enabled=is_main)
    stack.enter_context(contextlib.closing(writer))
    writer.write_texts(first_step, {"config": markdown.block(str(setup.config))})
    progress = Progress(
        settings.num_steps, first_step, settings.batch_size, enabled=is_main
    )
    stack.enter_context(contextlib.closing(progress))
    log = TrainLog(
        writer, progress, settings.log_every, settings.skip_nonfinite, window
    )
    return writer, progress, log
