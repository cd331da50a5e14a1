"""Evaluation: comparison pictures and a table of scores."""

import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import UInt8
from ml_collections import ConfigDict

from jcm import data
from jcm.commands import unused
from jcm.diffusion.schedule import Schedule
from jcm.metrics import given as given_samples
from jcm.metrics import scores as scores_lib
from jcm.model import build, loading, scoring
from jcm.model.labels import image_labels
from jcm.model.model import Model
from jcm.model.pixels import sample_pixels
from jcm.model.scoring import Scorer, Subject
from jcm.run import grids, results, storage, writers
from jcm.run import workdir as workdir_lib
from jcm.run.checkpoints import Checkpoints
from jcm.runtime import distributed, files, markdown
from jcm.runtime.errors import JcmError
from jcm.runtime.paths import resolved
from jcm.training import setup

_POLL_SECONDS = 10
# Each picture of the comparison has at most this many images, in this many columns.
_SHOWN, _COLUMNS = 64, 8
_PICTURE, _TABLES = "comparison.png", ("scores.json", "scores.md")

Picture = UInt8[np.ndarray, "_h _w 3"]


@dataclasses.dataclass(frozen=True)
class Row:
    """The scores of one model, sampled in one way.

    Attributes:
      step: training step of the model; None if it is unknown.
      samples: name of the model and way of sampling, such as "consistency, 1 step".
      scores: for each score, its value for each seed.
      num_images: number of images for each value.
    """

    step: int | None
    samples: str
    scores: dict[str, list[float]]
    num_images: int


def evaluate(
    config: ConfigDict,
    workdir: str | os.PathLike,
    given: Collection[str] = (),
    samples: str = "",
) -> None:
    """Samples a model in every way that the config asks for, and scores the samples.

    Writes `comparison.png` (teacher, one step, two steps, real images), `scores.json`
    and `scores.md` into the workdir, and logs the table. Those of an earlier call with
    other settings, weights or data are kept in WORKDIR/earlier. The model is that of
    `config.sample.model`, of the checkpoint `config.sample.step`, or of the newest
    checkpoint. With `config.eval.watch`, every checkpoint is evaluated, old ones first
    and new ones as they appear, up to that of the run's last step. The table has the
    scores of this call; `evaluation/scores.jsonl` has all scores of the workdir.

    Samples that another program made have a row of their own. If the workdir holds no
    run and the config names no model, the table has no other row.

    Args:
      config: how to sample and what to score. The network is that of the checkpoint.
      workdir: the run's folder.
      given: dotted names of the fields that the command line set.
      samples: a folder or file of pictures to score, too; see `metrics.given.samples`.

    Raises:
      JcmError: if there is no checkpoint, if a score cannot be computed, or if the
        command does not use a given field.
    """
    workdir = storage.local_folder(workdir)
    if config.eval.watch and config.sample.model:
        raise JcmError(
            "config.eval.watch evaluates the checkpoints of a workdir: drop"
            " config.sample.model"
        )
    dataset = scores_lib.real_images(config)
    theirs = _open_samples(config, samples) if samples else None
    given_rows, shown = _score_pictures(config, workdir, dataset, samples, theirs)
    alone = bool(samples) and not config.sample.model and not _holds_run(workdir)
    uses_scores = config.eval.scores and not alone
    scorer = Scorer(config, workdir, dataset) if uses_scores else None
    table: list[Row] = []
    once = [iter(()) if alone else _subjects(config, workdir, given)]
    watched = _each_checkpoint(config, workdir, given)
    for subjects in watched if config.eval.watch else once:
        rows, pictures, weights = _evaluate_subjects(config, scorer, subjects)
        pictures |= shown
        pictures["real images"] = _some_images(config, dataset)
        # The teacher has the same row at every checkpoint.
        table += [row for row in rows if row not in table]
        if jax.process_index() == 0:
            settings = _settings(config, dataset, weights)
            settings["samples"] = theirs.fingerprint if theirs else ""
            results.make_room(workdir, "evaluate", (_PICTURE, *_TABLES), settings)
            _write_pictures(workdir, pictures)
            complete = [*table, *given_rows]
            if complete and _write_table(config, workdir, complete) and rows:
                _write_events(workdir, rows)


def _holds_run(workdir: pathlib.Path) -> bool:
    """Returns whether a folder is the workdir of a run."""
    return (workdir / "run.json").exists()


def _open_samples(config: ConfigDict, samples: str) -> data.Dataset:
    """Opens samples that another program made.

    Raises:
      JcmError: if they cannot be read, or if there is no score.
    """
    if not config.eval.scores:
        raise JcmError("--samples needs scores: name some by config.eval.scores")
    with distributed.fail_together():  # one machine may lack the folder
        return given_samples.samples(config, samples, "--samples")


def _score_pictures(
    config: ConfigDict,
    workdir: pathlib.Path,
    dataset: data.Dataset,
    samples: str,
    pictures: data.Dataset | None,
) -> tuple[list[Row], dict[str, Picture]]:
    """Returns the row and the picture of samples that another program made, if any.

    Raises:
      JcmError: if they cannot be scored.
    """
    if pictures is None:
        return [], {}
    name, count = resolved(samples).name, len(pictures)
    title = f"{name}, {count} pictures"
    scorer = Scorer(config, workdir, dataset, given=count)
    found = scorer.of_pictures(name, pictures)
    scores = {column: [value] for column, value in found.items()}
    return [Row(None, title, scores, count)], {title: _some_images(config, pictures)}


def check(config: ConfigDict) -> None:
    """Checks before a long training that its model can be scored.

    Raises:
      JcmError: if a setting is impossible or a score cannot be computed.
    """
    setup.check_settings(config)
    with distributed.fail_together():  # one machine may lack the data
        real = scores_lib.real_images(config)
        if config.model.class_conditional and config.eval.reference:
            trained_on = data.load(config.data, config.data.split)
            scoring.check_classes(config, trained_on.class_names, real)
        scores_lib.create(config, real)


def load_subject(config: ConfigDict, workdir: pathlib.Path) -> Subject:
    """Loads the model that the config names."""
    model = loading.from_config(config, workdir)
    return Subject.of(config.sample.model or model.kind, model)


def _subjects(
    config: ConfigDict, workdir: pathlib.Path, given: Collection[str]
) -> Iterator[Subject]:
    """Yields the teachers that are available, and the model that the config names."""
    subject = load_subject(config, workdir)
    unused.check("evaluate", subject.model.kind, config, given)
    own = not config.sample.model
    teachers = workdir_lib.teacher_paths(config, workdir) if own else {}
    for name, path in teachers.items():
        if loading.exists(path):
            title = "teacher" if len(teachers) == 1 else f"teacher {name}"
            model = loading.load(path, batch_size=config.sample.batch_size)
            yield Subject.of(title, model)
        else:
            logging.info("the teacher %s is not available: evaluating without it", path)
    yield subject


def _each_checkpoint(
    config: ConfigDict, workdir: pathlib.Path, given: Collection[str]
) -> Iterator[list[Subject]]:
    """Yields the subjects of each checkpoint, and waits for new ones until the last."""
    step = config.sample.step - 1  # the next checkpoint is the first to evaluate
    # The length of the run may change when it resumes.
    while step < workdir_lib.read(workdir).config.train.num_steps:
        later = _next_step(workdir, step)
        if later is None:
            time.sleep(_POLL_SECONDS)
            continue
        step = later
        subjects = _subjects_of_step(config, workdir, step, given)
        if subjects:
            yield subjects
        else:
            logging.warning("step %d was deleted before it was evaluated", step)


def _next_step(workdir: pathlib.Path, step: int) -> int | None:
    """Returns the step of the oldest checkpoint after `step`; None if there is none."""
    try:
        with Checkpoints(workdir) as checkpoints:
            later = [found for found in checkpoints.steps if found > step]
    except FileNotFoundError:  # a checkpoint was deleted during the listing
        later = []
    # The processes may have listed the checkpoints at different moments.
    found = distributed.from_main(later[0] if later else -1)
    return None if found < 0 else found


def _subjects_of_step(
    config: ConfigDict, workdir: pathlib.Path, step: int, given: Collection[str]
) -> list[Subject]:
    """Returns the subjects of a checkpoint; [] if training has since deleted it."""
    config = config.copy_and_resolve_references()
    config.sample.step = step
    subjects, error = [], None
    try:
        subjects = list(_subjects(config, workdir, given))
    except JcmError as caught:
        error = caught
    # All processes must have loaded the checkpoint, since they sample together.
    if distributed.gather(np.bool_(error is None)).all():
        return subjects
    checkpoint = storage.shared_path(workdir) / "checkpoints" / str(step)
    if error and checkpoint.exists():
        raise error
    return []


def _evaluate_subjects(
    config: ConfigDict, scorer: Scorer | None, subjects: Iterable[Subject]
) -> tuple[list[Row], dict[str, Picture], dict[str, str]]:
    """Returns rows, pictures by title, and fingerprints of weights by subject.

    There is a row and a picture for each subject and way of sampling it.
    """
    rows: list[Row] = []
    pictures: dict[str, Picture] = {}
    weights: dict[str, str] = {}
    for subject in subjects:
        weights[subject.name] = subject.digest
        for schedule in build.default_schedules(config, subject.model.denoiser):
            title = f"{subject.name}, {schedule.title}"
            if scorer:
                by_seed = [scorer(subject, schedule, s) for s in config.eval.seeds]
                scores = {key: [each[key] for each in by_seed] for key in by_seed[0]}
                count = config.eval.num_images
                rows.append(Row(subject.model.step, title, scores, count))
            pictures[title] = _first_samples(config, subject.model, schedule)
    return rows, pictures, weights


def _first_samples(config: ConfigDict, model: Model, schedule: Schedule) -> Picture:
    """Returns a grid of the first samples that are scored."""
    count = min(config.sample.num_images, _SHOWN)
    labels = image_labels(config, count, model.denoiser, model.class_names)
    pixels = sample_pixels(
        model.sampler,
        model.params,
        config.eval.seeds[0],
        range(count),
        schedule,
        labels,
    )
    return grids.grid(pixels, _COLUMNS)


def _some_images(config: ConfigDict, dataset: data.Dataset) -> Picture:
    """Returns a grid of random images of a data set."""
    count = min(config.sample.num_images, _SHOWN)
    # The first images of a folder are often of one class.
    chosen = np.random.default_rng(0).permutation(len(dataset))[:count]
    return grids.grid(dataset.take(chosen)["image"], _COLUMNS)


def _settings(
    config: ConfigDict, dataset: data.Dataset, weights: dict[str, str]
) -> dict[str, Any]:
    """Returns the settings that an evaluation depends on, as plain data."""
    fields = {name: config.data[name] for name in ("name", "path", "split")}
    # A folder may have other pictures than before.
    settings = {"data": fields | {"fingerprint": dataset.fingerprint}} | {
        name: config[name].to_dict() for name in ("sample", "eval")
    }
    # The table of `watch` has many checkpoints.
    return settings if config.eval.watch else settings | {"weights": weights}


def _write_pictures(workdir: pathlib.Path, pictures: dict[str, Picture]) -> None:
    """Writes comparison.png."""
    path = workdir / _PICTURE
    grids.save_png(grids.captioned(pictures), path, scale=1)
    logging.info("the pictures are in %s", storage.shared_path(path))


def _write_table(config: ConfigDict, workdir: pathlib.Path, table: list[Row]) -> bool:
    """Writes scores.json, with every value, and scores.md, which is also logged.

    Returns:
      Whether the workdir did not have this table already.
    """
    text = _markdown(config, table)
    changed = files.write_text(workdir / "scores.md", text)
    content = {
        "num_images": config.eval.num_images,
        "seeds": list(config.eval.seeds),
        "rows": [dataclasses.asdict(row) for row in table],
    }
    changed |= files.write_json(workdir / "scores.json", content)
    logging.info(
        "the scores are in %s\n%s", storage.shared_path(workdir / "scores.md"), text
    )
    return changed


def _markdown(config: ConfigDict, table: list[Row]) -> str:
    """Returns the table as text, with a note on how to read it."""
    columns = list(dict.fromkeys(name for row in table for name in row.scores))
    lines = markdown.table(
        ["samples", "step", *columns],
        [
            (
                row.samples,
                "" if row.step is None else row.step,
                *(_cell(row.scores.get(column, ())) for column in columns),
            )
            for row in table
        ],
    )
    counts = " or ".join(dict.fromkeys(str(row.num_images) for row in table))
    seeds = max(len(values) for row in table for values in row.scores.values())
    note = f"{counts} uint8 images per row" + (
        f" and seed; mean ± standard deviation (minimum) of {seeds} seeds"
        if seeds > 1
        else ""
    )
    if len(columns) > 1:
        main = scores_lib.main_column(config.eval.scores)
        note += f"; {main} counts, since it is of the first of config.eval.scores"
    if config.eval.reference:
        note += f"; compared with {markdown.text(config.eval.reference)}"
    return f"{lines}\n\n{note}\n"


def _cell(values: Sequence[float]) -> str:
    """Returns the text of a cell, given one value for each seed."""
    if len(values) < 2:
        return "".join(f"{value:.3f}" for value in values)
    spread = f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
    return f"{spread} ({np.min(values):.3f})"


def _write_events(workdir: pathlib.Path, rows: list[Row]) -> None:
    """Writes the mean scores for TensorBoard, at the step of the model."""
    scalars = {
        f"{score}/{row.samples}": float(np.mean(values))
        for row in rows
        for score, values in row.scores.items()
    }
    writer = writers.TensorBoardWriter(workdir / "evaluation")
    with contextlib.closing(writer):
        writer.write_scalars(rows[-1].step or 0, scalars)
