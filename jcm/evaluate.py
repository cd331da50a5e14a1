"""Evaluation: pictures side by side and a table of scores for one checkpoint."""

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

from jcm import build, data, files, grids, metrics, model
from jcm import images as images_lib
from jcm import workdir as workdir_lib
from jcm.model import Model
from jcm.sampling import Schedule

# From a way of sampling to each score's value for each seed.
Table = dict[str, dict[str, list[float]]]


def evaluate(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Samples the newest checkpoint in every way the config asks for, and scores it.

    Writes `comparison.png` (teacher, one step, two steps, real images), `scores.json`
    and `scores.md` into the workdir, and logs the table.

    Args:
      config: what it says of sampling and scores counts; the network is that of the
        checkpoint.
      workdir: the run's folder.

    Raises:
      JcmError: where there is no checkpoint, or a score cannot be computed.
    """
    workdir = pathlib.Path(workdir)
    dataset = data.load(config.data)
    scores = metrics.create(config.eval.scores, dataset)
    columns = 8
    shown = min(config.sample.num_images, 64)
    panels: dict[str, UInt8[np.ndarray, "h w 3"]] = {}
    table: Table = {}
    for name, trained in _models(config, workdir):
        for schedule in build.sampling_schedules(config, trained.denoiser):
            title = f"{name}, {schedule.title}"
            seeds: list[dict[str, float]] = []
            for seed in config.eval.seeds if scores else config.eval.seeds[:1]:
                started = time.monotonic()
                count = max(config.eval.num_images if scores else 0, shown)
                made = _sample(config, trained, schedule, seed, count)
                if seed == config.eval.seeds[0]:
                    panels[title] = grids.grid(made[:shown], columns)
                seeds.append(_score(config, trained, scores, made))
                logging.info(
                    "%s, seed %d: %d images in %.1f s  %s",
                    *(title, seed, count, time.monotonic() - started),
                    "  ".join(f"{key} {value:.3g}" for key, value in seeds[-1].items()),
                )
            table[title] = {key: [row[key] for row in seeds] for key in seeds[0]}
    # Of a folder the first pictures are often of one kind.
    chosen = np.random.default_rng(0).permutation(len(dataset))[:shown]
    real = dataset.take(chosen)["image"]
    panels["real images"] = grids.grid(real, columns)
    if jax.process_index() == 0:
        grids.save_png(workdir / "comparison.png", grids.captioned(panels))
        logging.info("wrote %s", workdir / "comparison.png")
        if scores:
            _write_table(config, workdir, table)


def _models(config: ConfigDict, workdir: pathlib.Path) -> Iterator[tuple[str, Model]]:
    """The teacher where it is still at hand, then the model itself."""
    at_once = config.sample.batch_size
    trained = model.load(workdir, ema=config.sample.ema, batch_size=at_once)
    teacher = workdir_lib.teacher_place(config, workdir)
    if trained.kind == "consistency" and teacher and not os.path.exists(teacher):
        logging.info("the teacher, %s, is not here: it is left out", teacher)
    elif trained.kind == "consistency" and teacher:
        yield "teacher", model.load(teacher, batch_size=at_once)
    yield ("diffusion" if trained.kind == "edm" else "consistency"), trained


def _sample(
    config: ConfigDict, trained: Model, schedule: Schedule, seed: int, count: int
) -> UInt8[np.ndarray, "n h w c"]:
    labels = build.sample_labels(config, trained.denoiser, count)
    key = jax.random.key(seed)
    made = trained.sampler.all_processes(trained.params, key, count, schedule, labels)
    return images_lib.to_uint8(made)


def _score(
    config: ConfigDict,
    trained: Model,
    scores: Sequence[metrics.Score],
    made: np.ndarray,
) -> dict[str, float]:
    """All scores of one set of samples."""
    made = made[: config.eval.num_images]
    labels = build.sample_labels(config, trained.denoiser, len(made))
    found: dict[str, float] = {}
    for score in scores:
        found |= score(made, labels)
    return found


def _write_table(config: ConfigDict, workdir: pathlib.Path, table: Table) -> None:
    """scores.json with every value, scores.md for people, and the log."""
    columns = list(next(iter(table.values())))
    lines = [f"| samples | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for title, row in table.items():
        cells = (_cell(row[column]) for column in columns)
        lines.append(f"| {title} | {' | '.join(cells)} |")
    seeds = len(config.eval.seeds)
    note = f"{config.eval.num_images} images each, pixels rounded" + (
        f", mean ± standard deviation of {seeds} seeds" if seeds > 1 else ""
    )
    markdown = "\n".join(lines) + f"\n\n{note}\n"
    files.write_text(workdir / "scores.md", markdown)
    files.write_text(
        workdir / "scores.json",
        json.dumps({"seeds": list(config.eval.seeds), "scores": table}, indent=2)
        + "\n",
    )
    logging.info("wrote %s\n%s", workdir / "scores.md", markdown)


def _cell(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
