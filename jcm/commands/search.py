"""Search for the noise levels that sample best in two or more steps.

Song et al. 2023, section 3 and Appendix C: a ternary search finds one level after the
other. It assumes that the score has a single minimum over each level.
"""

import os
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Float
from ml_collections import ConfigDict

from jcm.commands import unused
from jcm.commands.evaluate import load_subject
from jcm.data import Dataset
from jcm.metrics import scores as scores_lib
from jcm.model import build
from jcm.model.scoring import Scorer, Subject
from jcm.run import results, storage
from jcm.runtime import files
from jcm.runtime.errors import JcmError

_FILE = "search.json"


def search(
    config: ConfigDict, workdir: str | os.PathLike, given: Collection[str] = ()
) -> None:
    """Finds `config.search.steps` noise levels for the newest checkpoint.

    Compares noise levels with the seed `config.search.seed`, and reports the score of
    the best ones for each seed of `config.eval.seeds`, which the search does not use.
    Writes `search.json` into the workdir; that of an earlier call with other settings
    is kept in WORKDIR/earlier. A search that was interrupted reuses the scores it has
    already computed.

    Args:
      config: what to search for, and how to sample and score.
      workdir: the run's folder.
      given: dotted names of the fields that the command line set.

    Raises:
      JcmError: for a diffusion model, or if no score gives the column that
        `config.search.score` names, or if the command does not use a given field.
    """
    workdir = storage.local_folder(workdir)
    subject = load_subject(config, workdir)
    _check(config, subject)
    unused.check("search", subject.model.kind, config, given)
    column, seed = _column(config), config.search.seed
    score, higher_is_better = scores_lib.of_column(column)
    config = config.copy_and_resolve_references()
    config.eval.scores = (score,)  # no other score is used
    dataset = scores_lib.real_images(config)
    scorer = Scorer(config, workdir, dataset)

    logging.info(
        "searching by %s of the score %s, %s is better; config.search.score names"
        " another column",
        *(column, score, "higher" if higher_is_better else "lower"),
    )

    def value(sigmas: tuple[float, ...], seed: int) -> float:
        schedule = build.schedule(config, subject.model.denoiser, sigmas=sigmas)
        return scorer(subject, schedule, seed)[column]

    sign = -1 if higher_is_better else 1
    points = config.search.points
    levels = np.asarray(build.grid(config)(jnp.arange(points), points))
    sigmas: tuple[float, ...] = (float(config.noise.sigma_max),)
    for _ in range(config.search.steps - 1):
        sigmas = _with_next(sigmas, levels, lambda s: sign * value(s, seed))
    searched = value(sigmas, seed)
    reported = {seed: value(sigmas, seed) for seed in config.eval.seeds}
    if jax.process_index() == 0:
        content = {
            "sigmas": list(sigmas),
            "score": column,
            "searched": searched,
            "reported": reported,
        }
        settings = _settings(config, dataset, subject)
        results.make_room(workdir, "search", [_FILE], settings)
        files.write_json(workdir / _FILE, content)
    logging.info(
        "%s is %.4g with --config.sample.sigmas='%s', as the mean over eval.seeds=%s",
        *(column, np.mean(list(reported.values())), sigmas, tuple(reported)),
    )


def _column(config: ConfigDict) -> str:
    """Returns the column to optimise; by default that of the first score.

    Raises:
      JcmError: if there is none.
    """
    if config.search.score:
        return config.search.score
    if not config.eval.scores:
        raise JcmError("name the column to optimise, such as config.search.score=fid")
    return scores_lib.main_column(config.eval.scores)


def _check(config: ConfigDict, subject: Subject) -> None:
    """Checks that the config can be searched for this model.

    Raises:
      JcmError: if it cannot.
    """
    if subject.model.kind != "consistency":
        raise JcmError("jcm search is for consistency models: name another workdir")
    if config.search.seed in config.eval.seeds:
        raise JcmError(
            f"config.search.seed={config.search.seed} is one of config.eval.seeds: use"
            " another one, since the result is reported for seeds that the search has"
            " not used"
        )
    if _column(config) == "as_asked" and not subject.model.class_names:
        raise JcmError(
            "config.search.score='as_asked' needs a class-conditional model: use"
            " another score"
        )


def _settings(config: ConfigDict, dataset: Dataset, subject: Subject) -> dict[str, Any]:
    """Returns the settings that a search depends on, as plain data."""
    fields = {name: config.data[name] for name in ("name", "path", "split")}
    return {
        "search": config.search.to_dict(),
        "eval": config.eval.to_dict(),
        "labels": list(config.sample.labels),
        # A folder may have other pictures than before.
        "data": fields | {"fingerprint": dataset.fingerprint},
        "weights": subject.digest,
    }


def _with_next(
    sigmas: tuple[float, ...],
    levels: Float[np.ndarray, " n"],
    value: Callable[[tuple[float, ...]], float],
) -> tuple[float, ...]:
    """Returns the levels so far and the best level below them."""
    below = [float(level) for level in levels if level < sigmas[-1]]
    best = ternary(len(below), lambda i: value((*sigmas, below[i])))
    return (*sigmas, below[best])


def ternary(count: int, value: Callable[[int], float]) -> int:
    """Returns the index of the smallest of `count` values that fall and then rise.

    Computes about 2 log_1.5(count) of the values, each of them once.

    Raises:
      JcmError: if `count` is 0.
    """
    if count < 1:
        raise JcmError(
            "config.search.steps is too large for config.search.points: use fewer"
            " steps or more points"
        )
    seen: dict[int, float] = {}

    def look(i: int) -> float:
        if i not in seen:
            seen[i] = value(i)
        return seen[i]

    low, high = 0, count - 1
    while high - low > 2:
        a = low + (high - low) // 3
        b = high - (high - low) // 3
        if look(a) <= look(b):
            high = b
        else:
            low = a
    for i in range(low, high + 1):
        look(i)
    return min(seen, key=lambda i: seen[i])
