"""Evaluation: pictures side by side and a table of scores."""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from absl import logging
from jaxtyping import UInt8
from ml_collections import ConfigDict

from jcm import build, data, files, grids, model, writers
from jcm import images as images_lib
from jcm import workdir as workdir_lib
from jcm.checkpoints import Checkpoints
from jcm.model import Model
from jcm.sampling import Schedule
from jcm.scoring import Scorer, Subject

# From a way of sampling to each score's value for each seed.
Table = dict[str, dict[str, list[float]]]

_POLL_SECONDS = 10


def evaluate(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Samples the newest checkpoint in every way the config asks for, and scores it.

    Writes `comparison.png` (teacher, one step, two steps, real images), `scores.json`
    and `scores.md` into the workdir, and logs the table. With `config.eval.watch`,
    the newest again whenever there is a new one, until that of the run's last step.

    Args:
      config: what it says of sampling and scores counts; the network is that of the
        checkpoint.
      workdir: the run's folder.

    Raises:
      JcmError: where there is no checkpoint, or a score cannot be computed.
    """
    workdir = pathlib.Path(workdir)
    dataset = data.load(config.data)
    scorer = Scorer(config, workdir, dataset) if config.eval.scores else None
    last = workdir_lib.read(workdir).config.train.num_steps
    step = None
    while True:
        newest = _newest(workdir)
        if newest != step or not config.eval.watch:
            step = newest
            _evaluate_newest(config, workdir, dataset, scorer)
        if not config.eval.watch or (step or 0) >= last:
            return
        time.sleep(_POLL_SECONDS)


def _evaluate_newest(
    config: ConfigDict,
    workdir: pathlib.Path,
    dataset: data.Dataset,
    scorer: Scorer | None,
) -> None:
    columns, shown = 8, min(config.sample.num_images, 64)
    panels: dict[str, UInt8[np.ndarray, "h w 3"]] = {}
    table: Table = {}
    for subject in subjects(config, workdir):
        for schedule in build.sampling_schedules(config, subject.model.denoiser):
            title = f"{subject.name}, {schedule.title}"
            pictures = _pictures(config, subject.model, schedule, shown)
            panels[title] = grids.grid(pictures, columns)
            if scorer:
                rows = [scorer(subject, schedule, seed) for seed in config.eval.seeds]
                table[title] = {key: [row[key] for row in rows] for key in rows[0]}
    # Of a folder the first pictures are often of one kind.
    chosen = np.random.default_rng(0).permutation(len(dataset))[:shown]
    real = dataset.take(chosen)["image"]
    panels["real images"] = grids.grid(real, columns)
    if jax.process_index() == 0:
        grids.save_png(workdir / "comparison.png", grids.captioned(panels))
        logging.info("wrote %s", workdir / "comparison.png")
        if table:
            _write_table(config, workdir, table)
            _write_events(workdir, subject.model.step, table)


def subjects(config: ConfigDict, workdir: pathlib.Path) -> Iterator[Subject]:
    """The teacher where it is still at hand, then the newest checkpoint itself."""
    at_once = config.sample.batch_size
    trained = model.load(workdir, ema=config.sample.ema, batch_size=at_once)
    teacher = workdir_lib.teacher_place(config, workdir)
    if trained.kind == "consistency" and teacher and not os.path.exists(teacher):
        logging.info("the teacher, %s, is not here: it is left out", teacher)
    elif trained.kind == "consistency" and teacher:
        yield Subject.of("teacher", model.load(teacher, batch_size=at_once))
    name = "diffusion" if trained.kind == "edm" else "consistency"
    yield Subject.of(name, trained)


def _newest(workdir: pathlib.Path) -> int | None:
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.latest_step


def _pictures(
    config: ConfigDict, trained: Model, schedule: Schedule, count: int
) -> UInt8[np.ndarray, "n h w c"]:
    """The first of the samples that are scored."""
    labels = build.sample_labels(config, trained.denoiser, count)
    key = jax.random.key(config.eval.seeds[0])
    made = trained.sampler.all_processes(
        trained.params, key, range(count), schedule, labels
    )
    return images_lib.to_uint8(made)


def _write_table(config: ConfigDict, workdir: pathlib.Path, table: Table) -> None:
    """scores.json with every value, scores.md for people, and the log."""
    columns = list(next(iter(table.values())))
    lines = [f"| samples | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for title, row in table.items():
        cells = (_cell(row[column]) for column in columns)
        lines.append(f"| {title} | {' | '.join(cells)} |")
    seeds = len(config.eval.seeds)
    note = f"{config.eval.num_images} images each, pixels rounded" + (
        f", mean ± standard deviation (least) of {seeds} seeds" if seeds > 1 else ""
    )
    markdown = "\n".join(lines) + f"\n\n{note}\n"
    files.write_text(workdir / "scores.md", markdown)
    files.write_text(
        workdir / "scores.json",
        json.dumps({"seeds": list(config.eval.seeds), "scores": table}, indent=2)
        + "\n",
    )
    logging.info("wrote %s\n%s", workdir / "scores.md", markdown)


def _write_events(workdir: pathlib.Path, step: int, table: Table) -> None:
    writer = writers.TensorBoardWriter(workdir / "evaluation")
    with contextlib.closing(writer):
        scalars = {
            f"{score}/{title}": float(np.mean(values))
            for title, row in table.items()
            for score, values in row.items()
        }
        writer.write_scalars(step, scalars)


def _cell(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    spread = f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
    return f"{spread} ({np.min(values):.3f})"
