"""Statistics of the features of many images, which scores compare."""

import dataclasses
from collections.abc import Callable, Collection

import jax
import numpy as np
import tqdm
from jaxtyping import Float, UInt8

from jcm.metrics import features, frechet
from jcm.metrics.networks import FeatureNetwork
from jcm.runtime import distributed
from jcm.runtime.errors import JcmError

# Images that are decoded between two updates of the progress bar.
_CHUNK = 512

Take = Callable[[np.ndarray], UInt8[np.ndarray, "_n h w c"]]
"""A function that returns the images with some numbers."""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Statistics of one kind of feature.

    Attributes:
      moments: mean and covariance.
      rows: the features themselves, one row an image, (n, d) float32; None if no score
        needs them.
    """

    moments: frechet.Moments
    rows: Float[np.ndarray, "n d"] | None


def collect(
    network: FeatureNetwork,
    take: Take,
    count: int,
    *,
    wanted: Collection[str],
    rows: Collection[str] = (),
    title: str = "",
) -> dict[str, Statistics]:
    """Computes the statistics of the images 0 to count - 1.

    Every process must call it. Each process handles its share of the images, and all
    processes get the statistics of all images.

    Args:
      network: the network that computes the features.
      take: from indices to uint8 images (n, h, w, c).
      count: the number of images.
      wanted: names of the features.
      rows: names of the features whose rows are kept.
      title: description for the progress bar.

    Raises:
      JcmError: if there are no images, they are not uint8, or a feature is not finite.
    """
    if count < 1:
        raise JcmError("there are no images to compute features of: pass at least one")
    # Shares are equal, so that every process takes part in the gathers below. Images
    # that wrap around at the end are counted once.
    share = -(-count // jax.process_count())
    first = jax.process_index() * share
    mine = (first + np.arange(share)) % count
    left = min(max(count - first, 0), share)
    sums: dict[str, frechet.MomentSum] = {}
    kept: dict[str, list[np.ndarray]] = {name: [] for name in rows}
    with tqdm.tqdm(total=share, desc=title, unit="image", delay=2) as progress:
        chunks = (mine[i : i + _CHUNK] for i in range(0, share, _CHUNK))
        batches = (take(chunk) for chunk in chunks)
        for found in features.extract(network, batches, wanted):
            for name, values in found.items():
                if name not in sums:
                    sums[name] = frechet.MomentSum(values.shape[1])
                sums[name].add(values[:left])
                if name in kept:
                    kept[name].append(values)
            left = max(left - len(values), 0)
            progress.update(len(values))
    collected = {}
    for name, total in sums.items():
        total.sums = tuple(distributed.gather(part).sum(axis=0) for part in total.sums)
        whole = None
        if name in kept:
            part = np.concatenate(kept[name])
            whole = distributed.gather(part).reshape(-1, part.shape[1])[:count]
        collected[name] = Statistics(total.moments(), whole)
    return collected
