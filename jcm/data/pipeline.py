"""The endless stream of training batches, a pure function of (seed, position).

This module decides the order of the data.
"""

import functools
import sys

import grain
import numpy as np
from jaxtyping import Bool, Int, UInt8

from jcm.data.dataset import Dataset
from jcm.data.records import Batch


def batches(
    dataset: Dataset,
    batch_size: int,
    *,
    seed: int,
    flip: bool,
    first: int = 0,
    rows: Int[np.ndarray, " n"] | None = None,
    workers: int = 1,
) -> grain.DatasetIterator[Batch]:
    """Yields shuffled batches without end, or this process's part of them.

    Each epoch is a new permutation of all records. Batches are cut from the sequence of
    all epochs and may cross the end of an epoch, so that a data set may be smaller than
    a batch. The content of a batch does not depend on the number of processes.

    Args:
      dataset: the data set.
      batch_size: examples in a batch, over all processes.
      seed: determines the permutations and the flips.
      flip: whether each image is mirrored left to right with probability 1/2.
      first: number of the first batch. A resumed run passes its step, so that no state
        of the iterator needs to be saved.
      rows: which examples of each batch to return; None for all.
      workers: threads that prepare batches in advance; with 0 a batch is prepared when
        it is needed. More than one thread helps if the disk is slow.

    Returns:
      An iterator over dict(image=uint8 (n, h, w, c), label=int32 (n,)).
    """

    def make(number: int, rng: np.random.Generator) -> Batch:
        # Flips are drawn for the whole batch, so that all processes agree on them.
        mine = np.arange(batch_size) if rows is None else rows
        positions = number * batch_size + mine
        batch = dataset.take(_records(positions, len(dataset), seed))
        if flip:
            flipped = rng.random(batch_size)[mine] < 0.5
            mirror(batch["image"], flipped)
        return batch

    # This reads a data set that is kept in memory, before several threads would do so.
    dataset.take(np.arange(0))
    # The elements of grain are whole batches. Its overhead of some ten microseconds for
    # each element would cost more than the images themselves.
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=2 * workers)
    numbers = grain.MapDataset.range(sys.maxsize)
    # The stream is cut after the map, whose random numbers depend on the position.
    stream = numbers.random_map(make, seed=seed)[first:]
    return iter(stream.to_iter_dataset(options))


def mirror(
    images: UInt8[np.ndarray, "b h w c"], chosen: Bool[np.ndarray, " b"]
) -> None:
    """Mirrors some images left to right, in place."""
    given = images[chosen]
    mirrored = np.empty_like(given)
    # NumPy reverses single bytes several times faster than pixels of three.
    for channel in range(images.shape[-1]):
        mirrored[..., channel] = given[:, :, ::-1, channel]
    images[chosen] = mirrored


def _records(
    positions: Int[np.ndarray, " b"], count: int, seed: int
) -> Int[np.ndarray, " b"]:
    """Returns the records at some positions of the endless sequence."""
    epochs, places = np.divmod(positions, count)
    records = np.empty_like(positions)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        records[chosen] = _permutation(count, seed, int(epoch))[places[chosen]]
    return records


# The cache keeps the permutation of an epoch for all of its batches, and of the next.
@functools.lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> Int[np.ndarray, " count"]:
    return np.random.default_rng((seed, epoch)).permutation(count)
