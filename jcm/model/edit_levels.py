"""The noise levels of the edits (Song et al. 2023, Appendix D)."""

import dataclasses

import numpy as np
from absl import logging
from jaxtyping import Float
from ml_collections import ConfigDict

from jcm.diffusion import edits
from jcm.diffusion.denoiser import Denoiser
from jcm.model import build
from jcm.model.build import Levels
from jcm.runtime.arguments import numbers
from jcm.runtime.errors import JcmError

# Number of points in the noise grid of editing. The last is sigma_min, where f is the
# identity, so it is left out.
_STEPS = 40
# Stroke-to-image in two steps.
_STROKE = (5.38, 2.24)
VARIATION = 2.0
"""The noise level of variations."""


def of_task(
    config: ConfigDict, denoiser: Denoiser, task: str, steps: int | None = None
) -> tuple[float, ...]:
    """Returns the noise levels of an edit, one for each step.

    Args:
      config: has the noise levels of the model.
      denoiser: f.
      task: name of the edit, such as "inpaint".
      steps: number of steps; None for those of the paper.

    Raises:
      JcmError: if there are too few or too many steps.
    """
    grid = build.grid(config).sigmas(_STEPS)[:-1]
    levels = {
        "stroke_to_image": _STROKE,
        "variations": (VARIATION,),
        "interpolate": grid[:1],
        "between": grid[:1],
    }.get(task, grid)
    if steps is None or steps == len(levels):
        return levels
    if task in ("interpolate", "between"):  # it samples from noise
        return build.schedule(config, denoiser, steps=steps).sigmas
    return descending(config, levels[0], steps)


def descending(config: ConfigDict, first: float, steps: int) -> tuple[float, ...]:
    """Returns noise levels of a grid that begins at `first`.

    Raises:
      JcmError: if there is no step.
    """
    if steps < 1:
        raise JcmError(f"steps={steps} must be at least 1")
    if steps == 1:
        return (first,)
    grid = dataclasses.replace(build.grid(config), sigma_max=first)
    return tuple(grid.sigmas(steps + 1)[:-1])


def of_noisy(
    noise: ConfigDict,
    x: Float[np.ndarray, "n h w c"],
    sigma: Levels | None,
) -> Float[np.ndarray, " n"]:
    """Returns the noise level of each image, estimated if `sigma` is None.

    Args:
      noise: `config.noise`.
      x: noisy images.
      sigma: of all images, or of each.

    Raises:
      JcmError: if there are several, but not one for each image, or if one is outside
        of the model's.
    """
    if sigma is None:
        levels = edits.noise_level(x)
    else:
        levels = np.asarray(numbers("sigma", sigma))
    if levels.shape not in ((), (1,), (len(x),)):
        raise JcmError(
            f"{levels.size} noise levels for {len(x)} images: pass one for each"
        )
    levels = np.broadcast_to(levels, len(x)).astype(np.float32)
    if sigma is None:
        levels = np.clip(levels, noise.sigma_min, noise.sigma_max)
        logging.info(
            "estimated noise levels: median %.3g, from %.3g to %.3g",
            *(np.median(levels), levels.min(), levels.max()),
        )
    # Comparisons with NaN are false, so this also rejects NaN.
    if not np.all((levels >= noise.sigma_min) & (levels <= noise.sigma_max)):
        raise JcmError(
            f"sigma={sigma} must lie within the model's noise levels,"
            f" {noise.sigma_min} to {noise.sigma_max}"
        )
    return levels
