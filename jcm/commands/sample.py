"""Sampling from a workdir into files."""

import os
import re

import jax
from absl import logging
from ml_collections import ConfigDict

from jcm.model import build, model
from jcm.model.pixels import sample_pixels, write_npz
from jcm.run import grids, storage


def sample(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Makes `config.sample.num_images` images by all of `config.sample.sigmas`.

    Writes WORKDIR/samples/seed_S_HOW.npz, such as seed_0_2_steps.npz, with `arr_0`
    (uint8, n h w c) and, for a class-conditional model, `arr_1` (labels), and a grid
    of up to 256 as .png.

    Args:
      config: what it says of sampling counts.
      workdir: of the run; with `config.sample.model` only where files go.

    Raises:
      JcmError: where there is no checkpoint, or labels or noise levels do not fit.
    """
    trained = model.of_config(config, workdir)
    count = config.sample.num_images
    schedule = build.sampling_schedules(config, trained.denoiser)[-1]
    labels = build.sample_labels(config, trained.denoiser, trained.class_names, count)
    seed = config.sample.seed
    pixels = sample_pixels(
        trained.sampler, trained.params, seed, range(count), schedule, labels
    )
    if jax.process_index() == 0:
        how = re.sub(r"\W+", "_", schedule.title.lower())
        stem = storage.local_folder(workdir) / "samples" / f"seed_{seed}_{how}"
        write_npz(stem.with_suffix(".npz"), pixels, labels)
        grids.save_png(stem.with_suffix(".png"), grids.grid(pixels[:256]))
        logging.info(
            "wrote %s.npz and .png: %d images, %s",
            *(storage.shared_path(stem), count, schedule.title),
        )
        storage.upload(stem)
