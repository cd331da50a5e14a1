"""Evaluation: pictures side by side and a table of scores."""

import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from absl import logging
from jaxtyping import UInt8
from ml_collections import ConfigDict

from jcm import data
from jcm.diffusion.sampler import Schedule
from jcm.model import build, model
from jcm.model.model import Model
from jcm.model.scoring import Scorer, Subject
from jcm.run import grids, storage, writers
from jcm.run import workdir as workdir_lib
from jcm.run.checkpoints import Checkpoints
from jcm.runtime import distributed, files
from jcm.runtime.errors import JcmError

_POLL_SECONDS = 10


@dataclasses.dataclass(frozen=True)
class Row:
    """Scores of one model sampled in one way.

    Attributes:
      step: of its checkpoint.
      samples: which model and how, for people.
      scores: of each score the value for each seed.
    """

    step: int | None
    samples: str
    scores: dict[str, list[float]]


def evaluate(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Samples a model in every way the config asks for, and scores it.

    Writes `comparison.png` (teacher, one step, two steps, real images), `scores.json`
    and `scores.md` into the workdir, and logs the table. The model is the one that
    `config.sample.model` names, or the newest checkpoint, or that of
    `config.sample.step`; with `config.eval.watch` every checkpoint there is and each
    new one as it appears, until that of the run's last step. The table has what this
    call evaluates; what was scored ever is in `evaluation/scores.jsonl`.

    Args:
      config: what it says of sampling and scores counts; the network is that of the
        checkpoint.
      workdir: the run's folder.

    Raises:
      JcmError: where there is no checkpoint, or a score cannot be computed.
    """
    workdir = storage.local(workdir)
    if config.eval.watch and config.sample.model:
        raise JcmError("config.eval.watch is for a workdir: drop config.sample.model")
    dataset = data.load(config.data, config.data.split)
    scorer = Scorer(config, workdir, dataset) if config.eval.scores else None
    table: list[Row] = []
    if not config.eval.watch:
        found = subjects(config, workdir)
        _evaluate_one(config, workdir, dataset, scorer, table, found)
        return
    last = workdir_lib.read(workdir).config.train.num_steps
    step = config.sample.step - 1  # where to begin, if anywhere
    while step < last:
        following = _next_step(workdir, step)
        if following is None:
            time.sleep(_POLL_SECONDS)
            continue
        step = following
        chosen = config.copy_and_resolve_references()
        chosen.sample.step = step
        found = _unless_deleted(chosen, workdir)
        if found:
            _evaluate_one(chosen, workdir, dataset, scorer, table, found)
        else:
            logging.warning("step %d was deleted before it was evaluated", step)


def _next_step(workdir: pathlib.Path, step: int) -> int | None:
    """Of the oldest checkpoint after a step, the same in every process."""
    try:
        with Checkpoints(workdir) as checkpoints:
            later = [found for found in checkpoints.steps if found > step]
    except FileNotFoundError:  # one was deleted while they were listed
        later = []
    found = distributed.from_main(later[0] if later else -1)
    return None if found < 0 else found


def _unless_deleted(config: ConfigDict, workdir: pathlib.Path) -> list[Subject]:
    """`subjects`, or nothing where training has deleted the checkpoint meanwhile."""
    found, error = [], None
    try:
        found = list(subjects(config, workdir))
    except JcmError as caught:
        error = caught
    # All processes together: the next thing they do is to sample together.
    if distributed.gather(np.bool_(error is None)).all():
        return found
    checkpoints = storage.shared(workdir) / "checkpoints"
    if error and (checkpoints / str(config.sample.step)).exists():
        raise error
    return []


def _evaluate_one(
    config: ConfigDict,
    workdir: pathlib.Path,
    dataset: data.Dataset,
    scorer: Scorer | None,
    table: list[Row],
    found: Iterable[Subject],
) -> None:
    """Appends to the table, and writes it."""
    columns, shown = 8, min(config.sample.num_images, 64)
    rows: list[Row] = []
    panels: dict[str, UInt8[np.ndarray, "h w 3"]] = {}
    for subject in found:
        for schedule in build.sampling_schedules(config, subject.model.denoiser):
            title = f"{subject.name}, {schedule.title}"
            if scorer:
                by_seed = [scorer(subject, schedule, s) for s in config.eval.seeds]
                scores = {key: [each[key] for each in by_seed] for key in by_seed[0]}
                rows.append(Row(subject.model.step, title, scores))
            pictures = _pictures(config, subject.model, schedule, shown)
            panels[title] = grids.grid(pictures, columns)
    table += [row for row in rows if row not in table]  # the teacher stays the same
    # Of a folder the first pictures are often of one kind.
    chosen = np.random.default_rng(0).permutation(len(dataset))[:shown]
    real = dataset.take(chosen)["image"]
    panels["real images"] = grids.grid(real, columns)
    if jax.process_index() == 0:
        grids.save_png(workdir / "comparison.png", grids.captioned(panels))
        logging.info("wrote %s", storage.shared(workdir / "comparison.png"))
        if table:
            _write_table(config, workdir, table)
            _write_events(workdir, subject.model.step or 0, rows)


def subjects(config: ConfigDict, workdir: pathlib.Path) -> Iterator[Subject]:
    """The teacher where it is still at hand, then the checkpoint itself."""
    trained = subject_of(config, workdir)
    teacher = workdir_lib.teacher_place(config, workdir)
    wanted = trained.name == "consistency" and teacher
    if wanted and not model.exists(teacher):
        logging.info("the teacher, %s, is not here: it is left out", teacher)
    elif wanted:
        at_once = config.sample.batch_size
        yield Subject.of("teacher", model.load(teacher, batch_size=at_once))
    yield trained


def subject_of(config: ConfigDict, workdir: pathlib.Path) -> Subject:
    """The model that the config names."""
    trained = model.of_config(config, workdir)
    name = "diffusion" if trained.kind == "edm" else "consistency"
    return Subject.of(config.sample.model or name, trained)


def _pictures(
    config: ConfigDict, trained: Model, schedule: Schedule, count: int
) -> UInt8[np.ndarray, "n h w c"]:
    """The first of the samples that are scored."""
    labels = build.sample_labels(config, trained.denoiser, trained.class_names, count)
    return trained.sampler.pixels(
        trained.params, config.eval.seeds[0], range(count), schedule, labels
    )


def _write_table(config: ConfigDict, workdir: pathlib.Path, table: list[Row]) -> None:
    """scores.json with every value, scores.md for people, and the log."""
    columns = list(table[0].scores)
    lines = [
        f"| samples | step | {' | '.join(columns)} |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for row in table:
        cells = (_cell(row.scores[column]) for column in columns)
        step = "" if row.step is None else row.step
        lines.append(f"| {row.samples} | {step} | {' | '.join(cells)} |")
    seeds = len(config.eval.seeds)
    note = f"{config.eval.num_images} images each, pixels rounded" + (
        f", mean ± standard deviation (least) of {seeds} seeds" if seeds > 1 else ""
    )
    markdown = "\n".join(lines) + f"\n\n{note}\n"
    files.write_text(workdir / "scores.md", markdown)
    content = {
        "num_images": config.eval.num_images,
        "seeds": list(config.eval.seeds),
        "rows": [dataclasses.asdict(row) for row in table],
    }
    files.write_json(workdir / "scores.json", content)
    logging.info("wrote %s\n%s", storage.shared(workdir / "scores.md"), markdown)


def _write_events(workdir: pathlib.Path, step: int, rows: list[Row]) -> None:
    """The means of one checkpoint's rows and of the teacher's, for TensorBoard."""
    writer = writers.TensorBoardWriter(workdir / "evaluation")
    with contextlib.closing(writer):
        scalars = {
            f"{score}/{row.samples}": float(np.mean(values))
            for row in rows
            for score, values in row.scores.items()
        }
        writer.write_scalars(step, scalars)


def _cell(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    spread = f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
    return f"{spread} ({np.min(values):.3f})"
