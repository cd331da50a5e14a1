"""The options that all edits share."""

import dataclasses
from typing import TypedDict

from jaxtyping import Array, Key

from jcm.diffusion.sampler import Callback
from jcm.model import build
from jcm.model.build import Levels
from jcm.model.labels import Labels
from jcm.runtime.arguments import optional, whole
from jcm.runtime.arrays import Whole


@dataclasses.dataclass(frozen=True)
class Options:
    """How to edit.

    Attributes:
      seed: an integer or a JAX key, which determines the noise.
      variants: number of results for each image, with different noise.
      steps: number of steps; None for the number of the paper.
      sigmas: descending noise levels, one for each step, in place of `steps`.
      labels: classes of a class-conditional model by number or name, one for all images
        or one for each; None for those of the config, or else every class in turn.
      output: "float" for an array in [-1, 1], "uint8" for an array of pixels, or "pil"
        for a list of Pillow images.
      progress: whether a progress bar appears if it takes more than two seconds.
      callback: called as `callback(step, sigma, images)` after each step of each batch.
        `step` counts from 1, `sigma` is the noise level at which the step begins, and
        `images` are the clean images after the step, as floats.
      trajectory: whether to return a pair (results, trajectory) in place of the
        results: entry i of the trajectory has the results after step i + 1.
      noisy: whether to add the first noise. The notebook of the original code does not.
      first: number of the first result, to make a part of a larger set of results.
    """

    seed: Key[Array, ""] | Whole = 0
    variants: Whole = 1
    steps: Whole | None = None
    sigmas: Levels | None = None
    labels: Labels = None
    output: str = "float"
    progress: bool = True
    callback: Callback | None = None
    trajectory: bool = False
    noisy: bool = True
    first: Whole = 0

    def __post_init__(self) -> None:
        """Makes numbers of Python of those of NumPy and JAX."""
        numbers = {
            "variants": whole("variants", self.variants, least=1),
            "steps": optional("steps", self.steps, least=1),
            "first": whole("first", self.first, least=0),
            "sigmas": None if self.sigmas is None else build.levels(self.sigmas),
        }
        for name, number in numbers.items():
            object.__setattr__(self, name, number)


class Keywords(TypedDict, total=False):
    """The fields of `Options` as the keyword arguments of an edit."""

    seed: Key[Array, ""] | Whole
    variants: Whole
    steps: Whole | None
    sigmas: Levels | None
    labels: Labels
    output: str
    progress: bool
    callback: Callback | None
    trajectory: bool
    noisy: bool
    first: Whole
