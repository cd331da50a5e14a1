"""The speed of score networks and scores: `jcm benchmark scores`."""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging

from jcm import config
from jcm.commands.benchmark.measuring import print_json, timed, watched
from jcm.data import images as images_lib
from jcm.metrics import features, frechet, lpips, networks, precision_recall, weights
from jcm.metrics.feature_scores import FEATURE_SCORES
from jcm.runtime import distributed, memory
from jcm.runtime.errors import JcmError

_FEATURES = 2048
_BATCH = 512
# Pairs of images that LPIPS compares in one call.
_PAIRS = 8


def measure(count: int, folder: str, images: int = 256) -> dict[str, Any]:
    """Times each available network, LPIPS, FID, and precision and recall.

    Args:
      count: number of random features on each side of the scores.
      folder: folder with the weights; see `weights.path`.
      images: number of 32x32 images for each network.

    Returns:
      Numbers by name. Peak memory is that of the process so far, in GiB.
    """
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (images, 32, 32, 3), np.uint8)
    return {
        "count": count,
        "features": _FEATURES,
        **_measure_networks(pictures, folder),
        **_measure_lpips(pictures, folder),
        **_measure_fid(rng, count),
        **_measure_precision_recall(rng, count),
    }


def _measure_networks(pictures: np.ndarray, folder: str) -> dict[str, float]:
    """Times the networks whose weights are available."""
    found: dict[str, float] = {}
    for name in networks.NETWORKS:
        if not _is_here(folder, name):
            continue
        try:
            network = networks.load(name, folder)
        except JcmError as error:
            logging.info("skipping %s: %s", name, error)
            continue
        wanted = {s.feature for s in FEATURE_SCORES.values() if s.network == name}

        def extract(network: Any = network, wanted: set[str] = wanted) -> list[Any]:
            return list(features.extract(network, [pictures], wanted))

        found |= _speed(name, extract, len(pictures))
    return found


def _measure_lpips(pictures: np.ndarray, folder: str) -> dict[str, float]:
    """Times LPIPS of pairs of images, if its weights are available."""
    if not _is_here(folder, "vgg16", "lpips_vgg"):
        return {}
    try:
        distance = lpips.load("lpips", folder=folder)
    except JcmError as error:
        logging.info("skipping lpips: %s", error)
        return {}
    a = images_lib.to_float(pictures[:_PAIRS])
    compiled = jax.jit(distance)
    return _speed("lpips", lambda: compiled(distance.params, a, a[::-1]), 2 * len(a))


def _is_here(folder: str, *names: str) -> bool:
    """Returns whether weights can be read without a download."""
    return bool(folder) or not any(name in weights.FILES for name in names)


def _speed(name: str, function: Callable[[], Any], images: int) -> dict[str, float]:
    """Times the second call of a function, which computes features of images."""
    _, compiling = timed(function)
    cpu = time.process_time()
    _, seconds = timed(function)
    cpu = time.process_time() - cpu
    return {
        f"{name}_images_per_second": images / seconds,
        f"{name}_cpu_seconds_per_image": cpu / images,
        f"{name}_compile_seconds": max(compiling - seconds, 0),
    }


def _measure_fid(rng: np.random.Generator, count: int) -> dict[str, float]:
    """Times the moments of random features, and the distance between moments."""

    def add_up() -> frechet.MomentSum:
        total = frechet.MomentSum(_FEATURES)
        for start in range(0, count, _BATCH):
            size = min(_BATCH, count - start)
            total.add(rng.standard_normal((size, _FEATURES), np.float32))
        return total

    total, moments_seconds = timed(add_up)
    _, seconds = timed(lambda: frechet.distance(total.moments(), total.moments()))
    return {
        "moments_seconds": moments_seconds,
        "frechet_seconds": seconds,
        "fid_peak_memory_gib": memory.peak_gib(),
    }


def _measure_precision_recall(rng: np.random.Generator, count: int) -> dict[str, float]:
    """Times precision and recall of random features."""
    a, b = (rng.standard_normal((count, _FEATURES), np.float32) for _ in range(2))
    cpu = time.process_time()
    _, seconds = timed(lambda: precision_recall.precision_recall(a, b))
    return {
        "precision_recall_seconds": seconds,
        "precision_recall_cpu_seconds": time.process_time() - cpu,
        "precision_recall_peak_memory_gib": memory.peak_gib(),
    }


def main(arguments: argparse.Namespace) -> None:
    """Prints the speed of networks and scores as JSON.

    Args:
      arguments: the flags `flags.SCORES`.
    """
    distributed.initialize(config.base())
    with watched("the scores") as others:
        found = measure(arguments.count, arguments.weights)
    print_json(found | others)
