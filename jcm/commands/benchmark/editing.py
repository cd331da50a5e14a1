"""Edits compared with simple methods for the same task: `jcm benchmark editing`.

Needs a model that was trained on a part of labelled data, for example with
--config.data.split='train[:1597]'. The images of the other part are edited. A
classifier, which is trained on the same part as the model, recognises the results.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.ndimage
from jaxtyping import Float, Int
from PIL import Image

from jcm import config as config_lib
from jcm import data
from jcm.commands.benchmark.measuring import print_json
from jcm.data import images
from jcm.metrics.classifier import Classifier
from jcm.model.loading import load
from jcm.model.model import Model
from jcm.run import workdir as workdir_lib
from jcm.runtime import distributed
from jcm.runtime.errors import JcmError

_VARIANTS = 8
_SIGMA = 0.5
# Widths of the Gaussian filter. The best one is chosen on the images that are scored,
# which favours the filter.
_WIDTHS = np.arange(0.2, 1.6, 0.05)

Images = Float[np.ndarray, "n h w c"]
# Returns the share of edited images that the classifier recognises correctly.
Right = Callable[[Images], float]


def measure(
    model: Model,
    classifier: Classifier,
    x: Images,
    labels: Int[np.ndarray, " n"],
) -> dict[str, Any]:
    """Scores inpainting, super-resolution and denoising of images.

    Args:
      model: an unconditional consistency model.
      classifier: a classifier that is prepared.
      x: images in [-1, 1], on which neither the model nor the classifier was trained.
      labels: class of each image.

    Returns:
      Scores by task and method: `rmse` for pixels in [0, 1], `psnr` in dB, and `right`,
      the share of results that the classifier puts into the class of the original.
    """

    def right(made: Images) -> float:
        recognised = classifier.recognise(images.to_uint8(made))
        return float(np.mean(recognised == np.repeat(labels, len(made) // len(labels))))

    found = {"count": len(x), "real": {"right": right(x)}}
    found["inpaint"] = _inpaint(model, x, right)
    found["super_resolve"] = _super_resolve(model, x, right)
    found["denoise"] = _denoise(model, x, right)
    return found


def _inpaint(model: Model, x: Images, right: Right) -> dict[str, Any]:
    """Scores the inpainting of the central half of height and width."""
    size = x.shape[1]
    hole = np.zeros((size, size), bool)
    hole[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = True
    _, nearest = scipy.ndimage.distance_transform_edt(hole, return_indices=True)
    mean = x.copy()
    mean[:, hole] = x[:, ~hole].mean(axis=1, keepdims=True)
    made = model.edit.inpaint(x, hole, variants=_VARIANTS)

    def rmse(filled: Images) -> Float[np.ndarray, " n"]:
        error = (filled - np.repeat(x, len(filled) // len(x), axis=0))[:, hole] / 2
        return np.sqrt(np.mean(error**2, axis=(1, 2)))

    each = rmse(made).reshape(len(x), _VARIANTS)
    best = made.reshape(len(x), _VARIANTS, *x.shape[1:])
    best = best[np.arange(len(x)), each.argmin(axis=1)]
    ways = {"mean": mean, "nearest": x[:, *nearest], "ours, best of 8": best}
    ways["ours, all"] = made
    return {
        way: {"rmse": float(rmse(filled).mean()), "right": right(filled)}
        for way, filled in ways.items()
    }


def _super_resolve(model: Model, x: Images, right: Right) -> dict[str, Any]:
    """Scores super-resolution from half the height and width."""
    count, size, _, channels = x.shape
    half = size // 2
    small = x.reshape(count, half, 2, half, 2, channels).mean(axis=(2, 4))

    def enlarge(image: np.ndarray) -> np.ndarray:
        floats = Image.fromarray(image)
        return np.asarray(floats.resize((size, size), Image.Resampling.BICUBIC))

    bicubic = np.stack(
        [
            np.stack([enlarge(image[..., c]) for c in range(channels)], axis=-1)
            for image in small
        ]
    )
    made = model.edit.super_resolve(small, variants=_VARIANTS)
    means = made.reshape(-1, half, 2, half, 2, channels).mean(axis=(2, 4))
    error = np.abs(means - np.repeat(small, _VARIANTS, axis=0)).max()
    averages = made.reshape(count, _VARIANTS, *x.shape[1:]).mean(axis=1)
    return {
        "bicubic": {"right": right(bicubic)},
        "ours, all": {"right": right(made), "largest_error_of_a_mean": float(error)},
        "ours, mean of 8": {"right": right(averages)},
    }


def _denoise(model: Model, x: Images, right: Right) -> dict[str, Any]:
    """Scores the removal of white noise in one network evaluation."""
    noisy = x + _SIGMA * np.random.default_rng(0).standard_normal(x.shape)
    noisy = noisy.astype(np.float32)

    def psnr(made: Images) -> float:
        return float(10 * np.log10(4 / np.mean((np.clip(made, -1, 1) - x) ** 2)))

    filtered = [
        scipy.ndimage.gaussian_filter(noisy, (0, width, width, 0)) for width in _WIDTHS
    ]
    ways = {
        "noisy": noisy,
        "gaussian filter": max(filtered, key=psnr),
        "ours": model.edit.denoise(noisy, sigma=_SIGMA),
        "ours, level estimated": model.edit.denoise(noisy),
    }
    return {
        way: {"psnr": psnr(made), "right": right(made)} for way, made in ways.items()
    }


def main(arguments: argparse.Namespace) -> None:
    """Prints the scores of a run's model as JSON.

    Args:
      arguments: the flags `flags.EDITING`.

    Raises:
      JcmError: if the run was trained on all of its data.
    """
    distributed.initialize(config_lib.base())
    workdir = arguments.workdir
    config = workdir_lib.read(workdir).config
    if config.data.split == "train":
        raise JcmError(
            f"{workdir} was trained on all of its data: train on a part, such as"
            " --config.data.split='train[:1597]'"
        )
    trained_on = data.load(config.data, config.data.split)
    held_out = data.load(config.data, arguments.held_out).arrays()
    classifier = Classifier(trained_on, len(trained_on))
    classifier.prepare()
    x = images.to_float(held_out["image"])
    model = load(workdir)
    print_json(measure(model, classifier, x, held_out["label"]))
