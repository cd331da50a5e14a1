"""Speed of the networks and the arithmetic of scores on this machine, as JSON.

python -m jcm.commands.benchmark.scores [--count=50000] [--weights=FOLDER]
"""

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags, logging

from jcm import config
from jcm.commands import cli
from jcm.metrics import features, frechet, manifold, networks, weights
from jcm.metrics.feature_scores import FEATURE_SCORES
from jcm.runtime import distributed, memory
from jcm.runtime.errors import JcmError

_COUNT = flags.DEFINE_integer(
    "count", 50_000, "Images whose features are compared.", lower_bound=10
)
_WEIGHTS = flags.DEFINE_string(
    "weights", "", "Folder with the files of the networks; a missing one is left out."
)
_FEATURES = 2048


def measure(count: int, folder: str, images: int = 256) -> dict[str, Any]:
    """Times each network that is at hand, FID and precision and recall.

    Args:
      count: rows of random features on each side of the scores.
      folder: where the weights lie; see `weights.path`.
      images: how many 32x32 images a network looks at.

    Returns:
      Numbers by name. The peak of memory is that of the process so far, in GiB.
    """
    found: dict[str, Any] = {"count": count, "features": _FEATURES}
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (images, 32, 32, 3), np.uint8)
    for name in networks.NETWORKS:
        # Without a folder a missing file would be fetched.
        if name in weights.FILES and not folder:
            continue
        try:
            network = networks.load(name, folder)
        except JcmError as error:
            logging.info("%s is left out: %s", name, error)
            continue
        wanted = {s.feature for s in FEATURE_SCORES.values() if s.network == name}
        list(features.extract(network, [pictures], wanted))  # compiles
        started = time.perf_counter()
        list(features.extract(network, [pictures], wanted))
        seconds = time.perf_counter() - started
        found[f"{name}_images_per_second"] = images / seconds

    total = frechet.MomentSum(_FEATURES)
    started = time.perf_counter()
    for start in range(0, count, 512):
        size = min(512, count - start)
        total.add(rng.standard_normal((size, _FEATURES), np.float32))
    found["moments_seconds"] = time.perf_counter() - started
    started = time.perf_counter()
    frechet.distance(total.moments(), total.moments())
    found["frechet_seconds"] = time.perf_counter() - started
    found["fid_peak_memory_gib"] = memory.peak_gib()

    a, b = (rng.standard_normal((count, _FEATURES), np.float32) for _ in range(2))
    started = time.perf_counter()
    manifold.precision_recall(a, b)
    found["precision_recall_seconds"] = time.perf_counter() - started
    found["precision_recall_peak_memory_gib"] = memory.peak_gib()
    return found


def main(argv: Sequence[str]) -> None:
    """Prints the numbers."""
    cli.check_arguments(argv)
    distributed.initialize(config.base())
    print(json.dumps(measure(_COUNT.value, _WEIGHTS.value), indent=2))


if __name__ == "__main__":
    cli.run(main)
