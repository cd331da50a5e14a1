"""What sampling and editing share: progress, callbacks, trajectories, output."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Array, Float, Int, Key
from PIL import Image

from jcm.data import images as images_lib
from jcm.diffusion.sampler import Callback, Sampler
from jcm.diffusion.schedule import Schedule
from jcm.networks import Params
from jcm.runtime.arrays import AnyArray, Whole, as_key
from jcm.runtime.errors import JcmError

OUTPUTS = ("float", "uint8", "pil")
# A progress bar appears after this many seconds.
_DELAY = 2


def run(
    sampler: Sampler,
    params: Params,
    seed: Key[Array, ""] | Whole,
    indices: Sequence[int],
    schedule: Schedule,
    labels: Sequence[int] | Int[AnyArray, " n"] | None,
    *,
    title: str,
    output: str,
    progress: bool,
    callback: Callback | None,
    trajectory: bool,
    clip: bool = False,
    **start: Any,
) -> Any:
    """Runs a sampler, and returns its images in the form that the user wants.

    Args:
      sampler: the sampler.
      params: parameters of its denoiser.
      seed: a key or an integer; determines all images, together with their numbers.
      indices: number of each image.
      schedule: noise levels and solver.
      labels: class of each image; None if the denoiser is unconditional.
      title: label of the progress bar.
      output: one of `OUTPUTS`.
      progress: whether to show a progress bar if it takes more than two seconds.
      callback: called after each step of each batch.
      trajectory: whether to return the images after each step, too.
      clip: whether to clip the images to [-1, 1].
      **start: what `Sampler` begins with.

    Returns:
      The images as `converted` gives them; with `trajectory` a pair (images,
      trajectory), where entry i of the trajectory has all images after step i + 1.

    Raises:
      JcmError: if the output is unknown, the labels do not fit, or an image is not
        finite.
    """
    check_output(output)
    count = len(schedule.steps(sampler.denoiser.precond.floor))
    kept: list[list[np.ndarray]] = [[] for _ in range(count if trajectory else 0)]

    def visit(step: int, sigma: float, x: Float[np.ndarray, "b h w c"]) -> None:
        if trajectory:
            kept[step - 1].append(x)
        if callback is not None:
            callback(step, sigma, x)

    with tqdm.tqdm(
        total=len(indices) * count,
        desc=title,
        unit="evaluation",
        delay=_DELAY,
        disable=not progress or jax.process_index() > 0,
    ) as bar:
        made = sampler(
            params,
            as_key(seed),
            indices,
            schedule,
            labels,
            callback=visit if trajectory or callback else None,
            progress=bar.update if progress else None,
            **start,
        )
    final = converted(made, output, clip=clip)
    if not trajectory:
        return final
    return final, [converted(np.concatenate(batches), output) for batches in kept]


def check_output(output: str) -> None:
    """Checks the name of an output.

    Raises:
      JcmError: if it is unknown.
    """
    if output not in OUTPUTS:
        raise JcmError(f"output={output!r} is unknown: use one of {', '.join(OUTPUTS)}")


def converted(
    x: Float[np.ndarray, "n h w c"], output: str, *, clip: bool = False
) -> Any:
    """Returns images in the form that the user wants.

    Args:
      x: images in about [-1, 1].
      output: "float" returns `x` itself; "uint8" clips and rounds it to 0..255; "pil"
        makes a list of Pillow images of that, grey ones for one channel.
      clip: whether floats are clipped to [-1, 1].

    Raises:
      JcmError: if an image is not finite, or if the images of a model have neither one
        nor three channels, and Pillow cannot show them.
    """
    check_finite(x)
    if output == "float":
        return np.clip(x, -1.0, 1.0) if clip else x
    pixels = images_lib.to_uint8(x)
    if output == "uint8":
        return pixels
    if pixels.shape[-1] not in (1, 3):
        raise JcmError(
            f"images of {pixels.shape[-1]} channels are no pictures: use output='float'"
        )
    return [
        Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each)
        for each in pixels
    ]


def check_finite(x: Float[AnyArray, "n h w c"]) -> None:
    """Checks that the images that a model has made are finite.

    Raises:
      JcmError: if a value is NaN or infinite.
    """
    xp = jnp if isinstance(x, jax.Array) else np  # on the device of the images
    if not bool(xp.isfinite(x).all()):
        raise JcmError(
            "the model makes images that are not finite: use an earlier checkpoint, or"
            " another model"
        )
