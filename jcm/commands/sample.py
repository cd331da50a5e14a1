"""Sampling into files: `jcm sample`."""

import os
import re
from collections.abc import Collection

import jax
from absl import logging
from ml_collections import ConfigDict

from jcm.commands import unused
from jcm.model import build, loading
from jcm.model.labels import image_labels
from jcm.model.pixels import sample_pixels, write_npz
from jcm.run import grids, storage

# The grid shows at most this many images.
_SHOWN = 256


def sample(
    config: ConfigDict, workdir: str | os.PathLike, given: Collection[str] = ()
) -> None:
    """Samples `config.sample.num_images` images, and writes them to files.

    A consistency model takes all steps of `config.sample.sigmas`. Writes
    WORKDIR/samples/seed_S_HOW.npz, such as seed_0_2_steps.npz, with the images as
    `arr_0` (uint8, n h w c) and the labels of a class-conditional model as `arr_1`, and
    a grid of up to 256 images as .png.

    Args:
      config: which model to use, and how to sample.
      workdir: the run's folder; with `config.sample.model`, a folder for the samples.
      given: dotted names of the fields that the command line set.

    Raises:
      JcmError: if there is no checkpoint, if labels or noise levels do not fit, or if
        the command does not use a given field.
    """
    model = loading.from_config(config, workdir)
    unused.check("sample", model.kind, config, given)
    count, seed = config.sample.num_images, config.sample.seed
    schedule = build.schedule(config, model.denoiser)
    labels = image_labels(config, count, model.denoiser, model.class_names)
    pixels = sample_pixels(
        model.sampler, model.params, seed, range(count), schedule, labels
    )
    if jax.process_index() == 0:
        how = re.sub(r"\W+", "_", schedule.title.lower())
        stem = storage.local_folder(workdir) / "samples" / f"seed_{seed}_{how}"
        write_npz(stem.with_suffix(".npz"), pixels, labels)
        grids.save_png(pixels[:_SHOWN], stem.with_suffix(".png"))
        logging.info(
            "wrote %s.npz and .png: %d images, %s",
            *(storage.shared_path(stem), count, schedule.title),
        )
        storage.upload(stem)
