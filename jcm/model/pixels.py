"""Samples as pixels: made by all processes together, and written to files."""

import contextlib
import math
import os
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils
from jaxtyping import UInt8

from jcm.data import images
from jcm.diffusion.sampler import Sampler
from jcm.diffusion.schedule import Schedule
from jcm.networks import Params
from jcm.run import storage
from jcm.runtime import distributed, growing, npz
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
            " finite: use an earlier checkpoint"
        )
    return np.asarray(pixels)[:count]


def fill(
    path: pathlib.Path,
    shape: tuple[int, ...],
    make: Callable[[range], UInt8[np.ndarray, "n h w c"]],
    title: str,
    part: int,
) -> UInt8[np.ndarray, "n h w c"]:
    """Writes images to a file, part after part; resumes a file that is not complete.

    Every process must call with the same arguments. Process 0 writes. What has changed
    since it was written is made again.

    Args:
      path: the file, which holds the bytes of the images in order and nothing else.
        `growing.delete` deletes it.
      shape: (n, h, w, c) of all images.
      make: makes the images with the given numbers.
      title: label of the progress bar.
      part: number of images between two writes.

    Returns:
      All images, mapped from the file.
    """
    each, count = math.prod(shape[1:]), shape[0]
    written: growing.Growing | None = None
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            written = stack.enter_context(growing.opened(path, each))
        done = distributed.from_main(min(written.size // each, count) if written else 0)
        progress = stack.enter_context(
            tqdm.tqdm(total=count, initial=done, desc=title, unit="image", delay=2)
        )
        for start in range(done, count, part):
            pixels = make(range(start, min(start + part, count)))
            if written:
                written.add(pixels.tobytes())
            progress.update(len(pixels))
        if written:
            # A network file system may otherwise keep the data on this machine.
            os.fsync(written.file.fileno())
        storage.sync(path)
        source = written.file if written else stack.enter_context(path.open("rb"))
        return np.memmap(source, np.uint8, "r", shape=shape)


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
    arrays = {"arr_0": pixels}
    if labels is not None:
        arrays["arr_1"] = np.asarray(labels, np.int32)
    npz.write(path, arrays)
