"""The noise levels that sample best in two steps and more.

Song et al. 2023, section 3 and Appendix C: each further level in turn by ternary
search, which asks for a score with one lowest point between neighbours.
"""

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Float
from ml_collections import ConfigDict

from jcm import data
from jcm.commands.evaluate import subject_of
from jcm.diffusion.schedule import Schedule
from jcm.metrics import scores as scores_lib
from jcm.model import build
from jcm.model.scoring import Scorer
from jcm.run import storage
from jcm.runtime import files
from jcm.runtime.errors import JcmError


def search(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Finds `config.search.steps` noise levels for the newest checkpoint.

    Candidates are scored with `config.search.seed`, the result once more with each of
    `config.eval.seeds`, which the search has not seen. Writes `search.json` into the
    workdir; what is scored already is not scored again after a kill.

    Args:
      config: what it says of search, scores and sampling counts.
      workdir: the run's folder.

    Raises:
      JcmError: for a diffusion model, or a column that no score gives.
    """
    wanted = config.search
    workdir = storage.local_folder(workdir)
    subject = subject_of(config, workdir)
    if subject.model.kind != "consistency":
        raise JcmError("--mode=search is for consistency models: name another workdir")
    if wanted.seed in config.eval.seeds:
        raise JcmError(
            f"config.search.seed={wanted.seed} is one of config.eval.seeds: the result"
            " is to be judged by others"
        )
    score, more_is_better = scores_lib.find(wanted.score)
    if wanted.score == "as_asked" and not subject.model.class_names:
        raise JcmError(
            "config.search.score='as_asked' needs a class-conditional model: name"
            " another score"
        )
    config = config.copy_and_resolve_references()
    config.eval.scores = (score,)  # the others would not count
    scorer = Scorer(config, workdir, data.load(config.data, config.data.split))
    levels = np.asarray(build.grid(config)(jnp.arange(wanted.points), wanted.points))

    def value(sigmas: tuple[float, ...], seed: int) -> float:
        return scorer(subject, Schedule(sigmas), seed)[wanted.score]

    sign = -1 if more_is_better else 1
    sigmas = (float(config.noise.sigma_max),)
    for _ in range(wanted.steps - 1):
        sigmas = _with_next(sigmas, levels, lambda s: sign * value(s, wanted.seed))
    searched = value(sigmas, wanted.seed)
    report = [value(sigmas, seed) for seed in config.eval.seeds]
    if jax.process_index() == 0:
        found = {
            "sigmas": list(sigmas),
            "score": wanted.score,
            "searched": searched,
            "reported": dict(zip(config.eval.seeds, report, strict=True)),
        }
        files.write_json(workdir / "search.json", found)
    logging.info(
        "%s %.4g over %d other seeds with --config.sample.sigmas='%s'",
        *(wanted.score, np.mean(report), len(report), sigmas),
    )


def _with_next(
    sigmas: tuple[float, ...],
    levels: Float[np.ndarray, " n"],
    value: Callable[[tuple[float, ...]], float],
) -> tuple[float, ...]:
    """The levels so far and the best one below them."""
    below = [float(level) for level in levels if level < sigmas[-1]]
    best = ternary(len(below), lambda i: value((*sigmas, below[i])))
    return (*sigmas, below[best])


def ternary(count: int, value: Callable[[int], float]) -> int:
    """The place of the least of `count` values that fall and then rise.

    Looks at about 2 log_1.5(count) of them, at none twice.

    Raises:
      JcmError: where there is nothing to choose from.
    """
    if count < 1:
        raise JcmError("config.search.steps is too many for config.search.points")
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
