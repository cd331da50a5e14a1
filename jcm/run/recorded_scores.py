"""The file of scores of a workdir: a line for each model, way of sampling and seed."""

import os
from typing import Annotated, NotRequired, TypedDict

import msgspec

from jcm.run import storage
from jcm.runtime import json_files
from jcm.runtime.json_files import Count

FILE = os.path.join("evaluation", "scores.jsonl")
"""The path of the file in a workdir."""
# Its lines are kept in memory. Each has about 800 bytes.
_MOST_BYTES = 16 * 2**20
# The networks, data and references that a score depends on.
_Depends = Annotated[dict[str, str], msgspec.Meta(max_length=20)]


class Score(TypedDict):
    """A line of the file.

    All but the last two keys say what was scored. Samples of other programs have no
    sigmas, solver, labels or seed.

    Attributes:
      model: name of the model.
      step: training step of its weights; None if it is unknown.
      weights: fingerprint of its weights; None for samples of other programs.
      samples: the way of sampling in words, or the fingerprint of the samples.
      sigmas: noise levels.
      solver: of the ODE, or "consistency".
      labels: `config.sample.labels`.
      seed: of the samples.
      num_images: number of samples.
      by: for each score, all that its value depends on except the samples.
      scores: the values by column.
    """

    model: str
    step: Count | None
    weights: str | None
    samples: str
    sigmas: NotRequired[list[float]]
    solver: NotRequired[str]
    labels: NotRequired[list[int | str]]
    seed: NotRequired[Count]
    num_images: Count
    by: Annotated[dict[str, _Depends], msgspec.Meta(max_length=50)]
    scores: Annotated[dict[str, float], msgspec.Meta(max_length=1000)]


def read(workdir: str | os.PathLike) -> list[Score]:
    """Returns the scores of a workdir in order; damaged lines are logged and left out.

    Raises:
      JcmError: if the file cannot be read.
    """
    path = storage.local_folder(workdir) / FILE
    try:
        each = json_files.lines(path, Score, _MOST_BYTES)
        return [score for score in each if score is not None]
    except FileNotFoundError:
        return []
