"""Samples and scores of a model while it trains."""

import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from absl import logging
from jaxtyping import UInt8
from ml_collections import ConfigDict

from jcm.diffusion.sampler import Sampler
from jcm.diffusion.schedule import Schedule
from jcm.metrics.scores import ScoreGroup
from jcm.model import build, loading
from jcm.model.labels import image_labels
from jcm.model.pixels import sample_pixels
from jcm.run import grids
from jcm.run.state import State
from jcm.run.writers import MetricWriter
from jcm.training.program import Program

# The names of scores among the numbers of a run begin with this.
SCORE_PREFIX = "eval/"


class Preview:
    """Writes samples and scores, from the same noise every time."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: pathlib.Path,
        program: Program,
        class_names: Sequence[str],
        writer: MetricWriter,
    ):
        """Compiles nothing yet.

        Args:
          config: the whole config.
          workdir: the run's folder; grids go to its folder `samples`.
          program: has the denoiser that is trained, and the devices.
          class_names: the classes of the data.
          writer: takes the numbers and pictures.
        """
        self._config, self._folder, self._writer = config, workdir / "samples", writer
        self._denoiser, self._class_names = program.method.denoiser, class_names
        # Parameters that one device cannot hold are sampled where they are.
        place = program.batch_sharding if config.mesh.fsdp > 1 else None
        self._sampler = Sampler(
            self._denoiser, batch_size=config.sample.batch_size, sharding=place
        )
        self._schedules = build.default_schedules(config, self._denoiser)

    def write(self, state: State) -> None:
        """Writes a grid of samples to a file and to TensorBoard."""
        count = self._config.sample.num_images
        pixels, _ = self._sample(state, count, self._schedules[-1])
        if jax.process_index() == 0:
            step = int(state.step)
            grids.save_png(pixels, self._folder / f"step_{step:08d}.png")
            self._writer.write_images(step, {"samples": pixels})

    def score(self, state: State, groups: Sequence[ScoreGroup]) -> None:
        """Writes scores of `config.eval.num_images` samples of each schedule."""
        found: dict[str, float] = {}
        for schedule in self._schedules:
            count = self._config.eval.num_images
            pixels, labels = self._sample(state, count, schedule)
            for group in groups:
                found |= {
                    f"{SCORE_PREFIX}{name}/{schedule.title}": value
                    for name, value in group(pixels, labels).items()
                }
        self._writer.write_scalars(int(state.step), found)
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in found.items())
        logging.info("step %d  %s", state.step, numbers)

    def _sample(
        self, state: State, count: int, schedule: Schedule
    ) -> tuple[UInt8[np.ndarray, "n h w c"], list[int] | None]:
        """Samples with the weights that the config names, and their labels."""
        name = loading.which_weights(self._config)
        params = state.ema_params.get(name) or getattr(state, name)
        labels = image_labels(self._config, count, self._denoiser, self._class_names)
        pixels = sample_pixels(
            self._sampler,
            params,
            self._config.sample.seed,
            range(count),
            schedule,
            labels,
        )
        return pixels, labels
