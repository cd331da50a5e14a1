"""Sampling into files: `jcm sample`."""

import os
from collections.abc import Collection

import jax
from absl import logging
from ml_collections import ConfigDict

from jcm.commands import unused
from jcm.model import build, loading
from jcm.model.labels import image_labels
from jcm.model.pixels import sample_pixels, write_npz
from jcm.model.scoring import Subject, identity_of, stem_of
from jcm.run import grids, storage
from jcm.runtime import files

# The grid shows at most this many images.
_SHOWN = 256


def sample(
    config: ConfigDict, workdir: str | os.PathLike, given: Collection[str] = ()
) -> None:
    """Samples `config.sample.num_images` images, and writes them to files.

    A consistency model takes all steps of `config.sample.sigmas`. Writes three files
    into WORKDIR/samples, such as step_800_seed_0_2_steps_16_images_DIGEST.npz: the
    images as `arr_0` (uint8, n h w c) with the labels of a class-conditional model as
    `arr_1`; a grid of up to 256 images as .png; all settings as .json. The digest is
    that of the settings, so that other settings have other files.

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
    subject = Subject.of(config.sample.model or model.kind, model)
    if jax.process_index() == 0:
        about = identity_of(subject, schedule, seed, config.sample.labels, count)
        step = "" if model.step is None else f"step {model.step}, "
        title = f"{step}seed {seed}, {schedule.title}, {count} images"
        stem = storage.local_folder(workdir) / "samples" / stem_of(title, about)
        write_npz(stem.with_suffix(".npz"), pixels, labels)
        grids.save_png(pixels[:_SHOWN], stem.with_suffix(".png"))
        files.write_json(stem.with_suffix(".json"), about)
        logging.info(
            "the samples are in %s.npz, .png and .json: %d images, %s",
            *(storage.shared_path(stem), count, schedule.title),
        )
        storage.upload(stem)
