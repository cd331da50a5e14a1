"""What scores compare: moments and rows of the features of many images."""

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

# Images decoded and looked at between two steps of the progress bar.
_CHUNK = 512

Take = Callable[[np.ndarray], UInt8[np.ndarray, "_n h w c"]]


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of one kind of feature.

    Attributes:
      moments: mean and covariance.
      rows: (n, d) float32, where a score needs them one by one.
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
    """Sends images 0 to count - 1 through a network.

    Every process must call, and looks at its share; every process gets all.

    Args:
      network: what looks at them.
      take: from indices to uint8 images.
      count: how many there are.
      wanted: names of the features.
      rows: those of them that are kept one by one.
      title: what the progress bar says.

    Raises:
      JcmError: for no images, anything but uint8, or features that are not finite.
    """
    if count < 1:
        raise JcmError("there are no images to look at: make some")
    # Equal shares, or the last process might have nothing to join in with. Images that
    # come up twice, at the end, count once.
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
