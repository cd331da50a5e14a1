"""Samples as pixels: made by all processes together, and written to a file."""

import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import UInt8

from jcm.data import images
from jcm.diffusion.sampler import Sampler
from jcm.diffusion.schedule import Schedule
from jcm.networks import Params
from jcm.runtime import files
from jcm.runtime.arrays import as_key
from jcm.runtime.errors import JcmError


def sample_pixels(
    sampler: Sampler,
    params: Params,
    seed: int,
    indices: Sequence[int],
    schedule: Schedule,
    labels: Sequence[int] | None = None,
) -> UInt8[np.ndarray, "n h w c"]:
    """Samples the images with the given numbers, each process an equal share.

    Every process must call, and every process gets all images.

    Args:
      sampler: of this process.
      params: parameters of its denoiser.
      seed: determines all images, together with their numbers.
      indices: number of each image; the same number gives the same image.
      schedule: noise levels and solver.
      labels: class of each image; None if the denoiser is unconditional.

    Raises:
      JcmError: in every process, if an image is not finite or the labels do not fit.
    """
    processes, count = jax.process_count(), len(indices)
    # Collective calls need equal shares; surplus images are dropped at the end.
    share = -(-count // processes)
    mine = (jax.process_index() * share + np.arange(share)) % max(count, 1)
    made = sampler(
        params,
        as_key(seed),
        [indices[i] for i in mine],
        schedule,
        None if labels is None else [labels[i] for i in mine],
    )
    finite = np.isfinite(made).all(axis=(1, 2, 3))
    pixels = images.to_uint8(np.nan_to_num(made))
    if processes > 1:
        pixels, finite = multihost_utils.process_allgather((pixels, finite), tiled=True)
    broken = np.flatnonzero(~finite[:count])
    if len(broken):
        raise JcmError(
            f"image {indices[broken[0]]} of seed {seed}, {schedule.title}, is not"
            " finite: take an earlier checkpoint"
        )
    return np.asarray(pixels)[:count]


def write_npz(
    path: pathlib.Path,
    pixels: UInt8[np.ndarray, "n h w c"],
    labels: Sequence[int] | None,
) -> None:
    """Writes pixels as `arr_0` and labels as `arr_1`.

    This is the format of guided-diffusion's evaluator.

    Raises:
      JcmError: if the file cannot be written.
    """
    arrays = [pixels] if labels is None else [pixels, np.asarray(labels, np.int32)]
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, *arrays)
