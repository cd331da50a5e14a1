"""Checks a config and its data, before the workdir is touched."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from jcm import config as config_lib
from jcm import data, methods
from jcm.diffusion.denoiser import Denoiser
from jcm.diffusion.precond import EDM, Consistency
from jcm.metrics import scores as scores_lib
from jcm.model import build, loading, scoring
from jcm.model.labels import image_labels
from jcm.run import workdir as workdir_lib
from jcm.runtime import distributed
from jcm.runtime.errors import JcmError
from jcm.training import memory_plan, program, snapshots, start
from jcm.training.profiling import Profile
from jcm.training.program import Program

# A function that trains a config in a workdir.
Train = Callable[[ConfigDict, str | os.PathLike], Any]


@dataclasses.dataclass(frozen=True)
class Setup:
    """What follows from the config and the data alone.

    Attributes:
      config: the whole config.
      dataset: what is trained on.
      program: the training step, not compiled yet.
      teachers: the models that the loss reads, by name.
      score_groups: the scores to compute while training.
      score_every: steps between two scorings; 0 for none.
      profile: traces the steps that the config names.
      memory_limit: bytes that one device has free before the run begins.
    """

    config: ConfigDict
    dataset: data.Dataset
    program: Program
    teachers: dict[str, start.Teacher]
    score_groups: list[scores_lib.ScoreGroup]
    score_every: int
    profile: Profile
    memory_limit: int | None


def check_settings(config: ConfigDict) -> None:
    """Checks what needs no data, before the data is prepared.

    Raises:
      JcmError: for settings that no data can make valid.
    """
    config_lib.check(config)
    network = build.network(config, num_classes=2)
    kinds = {"diffusion": EDM(), "consistency": Consistency()}
    stand_ins = {
        name: Denoiser(network, kinds.get(kind, EDM()))
        for name, kind in methods.recipe(config.method).teachers.items()
    }
    methods.create(config, network, stand_ins)
    snapshots.power_averages(config)


def check(
    config: ConfigDict,
    workdir: pathlib.Path,
    train: Train,
    dataset: data.Dataset | None,
) -> Setup:
    """Checks settings and data, without touching the workdir or compiling anything."""
    check_settings(config)
    with distributed.fail_together():  # one machine may lack the data
        if not workdir_lib.newest_step(workdir):  # it is not needed later
            start.check_init(config)
        if dataset is None:
            dataset = data.load(config.data, config.data.split)
    logging.info("the data: %s", dataset.summary())
    names = dataset.class_names
    with distributed.fail_together():  # or a teacher
        teachers = start.find_teachers(config, len(names), workdir, train)
    denoisers = {name: teacher.denoiser for name, teacher in teachers.items()}
    made = program.create(config, len(names), denoisers)
    method = made.method
    for name, teacher in teachers.items():
        try:
            if teacher.config is not None:
                program.check_batch_size(
                    teacher.config, made.mesh.size, "teacher_train"
                )
        except JcmError as error:
            raise JcmError(f"the teacher {config.teachers[name]}: {error}") from error
    memory_limit = memory_plan.limit()
    profile = Profile(config.profile.steps, workdir / "profile")
    # Also of the teachers, which the evaluation after the training samples.
    for each in (method.denoiser, *denoisers.values()):
        build.default_schedules(config, each)
    image_labels(config, config.sample.num_images, method.denoiser, names)
    if loading.which_weights(config) == "target_params" and not method.keeps_target:
        raise JcmError(
            "config.sample.ema='target_params', but this method keeps no target: use"
            " params, or one of config.train.averages"
        )
    score_every = math.ceil(1000 * config.eval.every_kimg / config.train.batch_size)
    distributed.check_equal({"the data's fingerprint": dataset.fingerprint})
    return Setup(
        config=config,
        dataset=dataset,
        program=made,
        teachers=teachers,
        score_groups=_score_groups(config, dataset, method) if score_every else [],
        score_every=score_every,
        profile=profile,
        memory_limit=memory_limit,
    )


def _score_groups(
    config: ConfigDict, dataset: data.Dataset, method: methods.Method
) -> list[scores_lib.ScoreGroup]:
    """Returns the scores to compute while training on a data set."""
    real = scores_lib.real_images(config, dataset)
    conditional = method.denoiser.num_classes > 0
    scoring.check_classes(config, dataset.class_names if conditional else (), real)
    return scores_lib.create(config, real)
