"""Training, top to bottom: set up, then sample, save, step, log in a loop."""

import contextlib
import functools
import math
import os
import pathlib
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from clu.parameter_overview import get_parameter_overview
from jaxtyping import UInt8
from ml_collections import ConfigDict

from jcm import config as config_lib
from jcm import data, methods, networks
from jcm.diffusion.denoiser import Denoiser
from jcm.diffusion.sampler import Sampler, Schedule
from jcm.methods import Frozen
from jcm.metrics import scores as scores_lib
from jcm.model import build, model
from jcm.run import grids, lock, storage, writers
from jcm.run import state as state_lib
from jcm.run import workdir as workdir_lib
from jcm.run.checkpoints import Checkpoints
from jcm.run.progress import Progress
from jcm.run.state import State
from jcm.runtime import distributed, memory, preemption, sharding
from jcm.runtime.errors import JcmError, Preempted
from jcm.training import memory_plan, optim, start
from jcm.training.log import TrainLog
from jcm.training.profiling import Profile
from jcm.training.step import compile_step, make_train_step, trace_step

# Begins the names of scores among the numbers of a run.
_SCORES = "eval/"


def train(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Trains a model, or goes on where an earlier call stopped.

    Writes checkpoints, metrics and sample grids into `workdir`. Returns at once where
    the run is done already.

    Args:
      config: the whole config.
      workdir: the run's folder, on storage that all processes share, or
        gs://BUCKET/RUN.

    Raises:
      JcmError: for what the user can mend, and for a loss that is not finite.
      Preempted: after SIGTERM; what was done is saved.
    """
    workdir = storage.local(workdir)
    total = config.train.num_steps
    # Settings that cannot be used are refused before what takes long.
    methods.create(config, build.network(config, num_classes=2))
    with distributed.together():  # one machine may lack the data
        dataset = data.load(config.data, config.data.split)
    mesh = sharding.make_mesh(config.mesh.fsdp)
    check_batch(config, mesh.size)
    network = build.network(config, len(dataset.class_names))
    method = methods.create(config, network)
    if method.needs_teacher and config_lib.is_file(config.teacher):
        try:
            check_batch(start.teacher_config(config), mesh.size)
        except JcmError as error:
            raise JcmError(f"the teacher, {config.teacher}: {error}") from error
    optimizer = optim.create(config.optim, config.train.batch_size)
    limit = memory_plan.limit()  # before anything lies there
    rules = sharding.Rules.of(config.mesh)
    profile = Profile(config.profile.steps, workdir / "profile")
    # What the samples shall be is wrong now or never.
    build.sampling_schedules(config, method.model)
    names = dataset.class_names
    build.sample_labels(config, method.model, names, config.sample.num_images)
    scores = scores_lib.create(config, dataset)
    every_steps = math.ceil(1000 * config.eval.every_kimg / config.train.batch_size)
    if not every_steps:
        scores = []  # what they hold is not needed before the evaluation
    if model.which_weights(config) == "target_params" and not method.keeps_target:
        raise JcmError(
            "config.sample.ema='target_params', but this method keeps no target: use"
            " params, or a rate of config.train.ema_rates"
        )
    distributed.refuse_differences({"the data's fingerprint": dataset.fingerprint})
    record = workdir_lib.Record(config, dataset.class_names, dataset.fingerprint)
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    new_state = functools.partial(
        state_lib.create,
        optimizer=optimizer,
        keeps_target=method.keeps_target,
        ema_rates=config.train.ema_rates,
    )
    place = functools.partial(sharding.shard_tree, mesh, rules=rules)
    template = sharding.with_placement(jax.eval_shape(new_state, network.shapes), place)
    sharding.refuse_idle_rules(template, rules)
    is_main = jax.process_index() == 0

    with contextlib.ExitStack() as stack:
        stack.enter_context(lock.hold(workdir))
        workdir_lib.claim(workdir, record)
        # Until the last checkpoint is whole on disk.
        watch = stack.enter_context(preemption.Watch())
        checkpoints = stack.enter_context(
            Checkpoints(workdir, keep=config.train.keep_checkpoints)
        )
        latest = checkpoints.latest_step
        if (latest or 0) >= total:
            # What is damaged is not done.
            latest = int(checkpoints.restore(template).step)
        scored = latest != total or not due(total, every_steps)
        if (latest or 0) >= total and (scored or _scored(workdir, total)):
            logging.info("%s is done: %d steps", storage.shared(workdir), latest)
            return
        logging.info(
            "\n%s", get_parameter_overview(network.shapes, include_stats=False)
        )
        teacher = None
        if method.needs_teacher:
            teacher = start.teacher_weights(config, workdir, network, train)
            teacher_hash = networks.fingerprint(teacher)
            distributed.refuse_differences({"the teacher's weights": teacher_hash})
            workdir_lib.claim_teacher(workdir, teacher_hash)
        frozen = Frozen(teacher=teacher, constants=method.constants)
        frozen = jax.device_put(frozen, place(frozen))
        del teacher
        batch_place = sharding.batch(mesh)
        shapes = batch_shapes(config, batch_place)
        with distributed.together(), memory_plan.refusing(config, jax.devices()):
            train_step = make_train_step(
                method,
                optimizer,
                seed_key=step_key,
                accumulate=config.train.accumulate,
                skip_nonfinite=config.train.skip_nonfinite > 0,
            )
            train_step = compile_step(trace_step(train_step, template, frozen, shapes))
        if mesh.shape["fsdp"] > 1:
            logging.info("%s", sharding.overview(template))
        planned = memory_plan.make(template, frozen, shapes, train_step, limit)
        logging.info("%s", planned)
        with distributed.together():
            memory_plan.refuse(planned, config)

        state = checkpoints.restore(template)
        if state is None:
            weights = frozen.teacher or jax.jit(network.init)(init_key)
            state = start.first_state(config, network, new_state, template, weights)
            del weights
            memory.release()
        else:
            logging.info("going on from step %d", state.step)
        first = int(state.step)
        unscored = (
            latest is not None
            and due(first, every_steps)
            and not _scored(workdir, first)
        )

        batches = data.batches(
            dataset,
            config.train.batch_size,
            seed=config.seed,
            flip=config.data.flip,
            first=first,
            rows=sharding.rows(batch_place, config.train.batch_size),
            workers=config.data.workers,
        )
        to_devices = functools.partial(
            jax.make_array_from_process_local_data, batch_place
        )
        writer = stack.enter_context(
            contextlib.closing(
                writers.create(workdir, resume_step=first, enabled=is_main)
            )
        )
        writer.write_texts(first, {"config": f"```\n{config}\n```"})
        for score in scores:
            score.prepare()
        progress = stack.enter_context(
            contextlib.closing(
                Progress(total, first, config.train.batch_size, enabled=is_main)
            )
        )
        log = TrainLog(
            writer, progress, config.train.log_every, config.train.skip_nonfinite
        )
        stack.enter_context(contextlib.closing(profile))
        show = Samples(config, workdir, method.model, names, mesh, writer)

        # This order makes resuming exact: what is saved is the state between steps.
        saved = first if latest is not None else 0
        for step in range(first, total + 1):
            last = step == total
            if log.stop and not last:
                log.settle()
                if step > saved:
                    checkpoints.save(state)
                checkpoints.finish()
                raise Preempted(
                    f"stopped by SIGTERM after step {step}, which is saved; the same"
                    " command goes on from there",
                    by_all=True,
                )
            if step > first and (last or due(step, config.train.sample_every)):
                log.settle()
                with progress.pause():
                    show.write(state)
            if step > first and (last or due(step, config.train.checkpoint_every)):
                log.settle()  # raises before anything that is not finite is saved
                with progress.pause():
                    storage.push(workdir)
                    checkpoints.save(state)
                saved = step
            # After saving, since this takes long; a kill leaves it to the next start.
            if due(step, every_steps) and (step > first or unscored):
                log.settle()
                with progress.pause():
                    show.score(state, scores)
            if last:
                break
            # The step before is under way while this batch comes and is sent off.
            waiting = time.monotonic()
            batch = next(batches) | {"stop": watch.flags()}
            waited = time.monotonic() - waiting
            profile.before(step + 1)
            batch = jax.tree.map(to_devices, batch)
            state, numbers = train_step(state, frozen, batch)
            profile.after(step + 1, numbers)
            log.add(step + 1, numbers, waited)
    storage.push(workdir)


def check_batch(config: ConfigDict, devices: int) -> None:
    """Makes sure that the batch can be split evenly.

    Raises:
      JcmError: where it cannot.
    """
    batch_size, accumulate = config.train.batch_size, config.train.accumulate
    if batch_size % (devices * accumulate):
        raise JcmError(
            f"config.train.batch_size={batch_size} must be a multiple of devices x "
            f"accumulate = {devices} x {accumulate}"
        )


def batch_shapes(
    config: ConfigDict, place: jax.sharding.NamedSharding
) -> dict[str, jax.ShapeDtypeStruct]:
    """A global batch as shapes."""
    count, size = config.train.batch_size, config.data.image_size
    shape = (count, size, size, config.data.channels)
    return {
        "image": jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=place),
        "label": jax.ShapeDtypeStruct((count,), jnp.int32, sharding=place),
        "stop": jax.ShapeDtypeStruct((place.mesh.size,), jnp.int32, sharding=place),
    }


def due(step: int, every: int) -> bool:
    """Whether something done `every` so many steps is due; 0 is never."""
    return step > 0 and every > 0 and step % every == 0


def _scored(workdir: pathlib.Path, step: int) -> bool:
    """Whether the samples of this step were scored; every process must ask."""
    found = writers.wrote(workdir, step, _SCORES)
    return distributed.from_main(found)


class Samples:
    """Pictures and scores of a model as it learns, from the same noise every time."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: pathlib.Path,
        denoiser: Denoiser,
        class_names: Sequence[str],
        mesh: jax.sharding.Mesh,
        writer: writers.MetricWriter,
    ):
        """Compiles nothing yet; see `write`."""
        self._config, self._folder, self._writer = config, workdir / "samples", writer
        self._denoiser, self._class_names = denoiser, class_names
        # Parameters that one device cannot hold are sampled where they are.
        place = sharding.batch(mesh) if config.mesh.fsdp > 1 else None
        self._sampler = Sampler(
            denoiser, batch_size=config.sample.batch_size, sharding=place
        )
        self._schedules = build.sampling_schedules(config, denoiser)

    def write(self, state: State) -> None:
        """Writes a grid to file and TensorBoard."""
        count = self._config.sample.num_images
        pixels, _ = self._make(state, count, self._schedules[-1])
        if jax.process_index() == 0:
            step = int(state.step)
            grids.save_png(self._folder / f"step_{step:08d}.png", grids.grid(pixels))
            self._writer.write_images(step, {"samples": pixels})

    def score(self, state: State, scores: Sequence[scores_lib.Score]) -> None:
        """Writes `eval/...` of `config.eval.num_images` samples of each schedule."""
        found: dict[str, float] = {}
        for schedule in self._schedules:
            count = self._config.eval.num_images
            pixels, labels = self._make(state, count, schedule)
            for score in scores:
                found |= {
                    f"{_SCORES}{name}/{schedule.title}": value
                    for name, value in score(pixels, labels).items()
                }
        self._writer.write_scalars(int(state.step), found)
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in found.items())
        logging.info("step %d  %s", state.step, numbers)

    def _make(
        self, state: State, count: int, schedule: Schedule
    ) -> tuple[UInt8[np.ndarray, "n h w c"], list[int] | None]:
        """Samples with the weights that the config names, and their labels."""
        name = model.which_weights(self._config)
        params = state.ema_params.get(name) or getattr(state, name)
        labels = build.sample_labels(
            self._config, self._denoiser, self._class_names, count
        )
        pixels = self._sampler.pixels(
            params, self._config.sample.seed, range(count), schedule, labels
        )
        return pixels, labels
