"""The endless stream of training batches, a pure function of (seed, position)."""

import functools
import sys

import grain
import numpy as np
from jaxtyping import Int

from jcm.data.dataset import Batch, Dataset


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
    """Endless shuffled batches, or this process's part of them.

    The records follow each other in epochs, each a new permutation of all of them;
    batches are cut from this sequence without regard to where an epoch ends, so that
    a set may be smaller than a batch. A batch does not depend on how many share it.

    Args:
      dataset: what to draw from.
      batch_size: examples per batch, of all processes together.
      seed: chooses the permutations and the flips.
      flip: mirror each picture left-right with probability 1/2.
      first: number of the first batch to give. A run goes on by it: there is nothing
        to save, whatever number of processes the run has then.
      rows: which examples of each batch to give; None for all.
      workers: threads that make batches ahead of time; 0: none, a batch is made when
        asked for. More than one pays where the disk is slow; decoding itself is bound
        by the GIL.

    Returns:
      An iterator over dict(image=uint8 (n, h, w, c), label=int32 (n,)).
    """

    def make(number: int, rng: np.random.Generator) -> Batch:
        # Flips are drawn for the whole batch, since `rng` belongs to its number.
        mine = np.arange(batch_size) if rows is None else rows
        positions = number * batch_size + mine
        batch = dataset.take(_records(positions, len(dataset), seed))
        if flip:
            flipped = rng.random(batch_size)[mine] < 0.5
            batch["image"][flipped] = batch["image"][flipped, :, ::-1]
        return batch

    # A set that is kept decoded is decoded now, not by several threads at once.
    dataset.take(np.arange(0))
    # Grain handles whole batches rather than records: its bookkeeping of some ten
    # microseconds per element would otherwise cost more than the pictures.
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=2 * workers)
    numbers = grain.MapDataset.range(sys.maxsize)
    # Cut after the map, whose random numbers belong to the place in all batches.
    stream = numbers.random_map(make, seed=seed)[first:]
    return iter(stream.to_iter_dataset(options))


def _records(
    positions: Int[np.ndarray, " b"], count: int, seed: int
) -> Int[np.ndarray, " b"]:
    """The records at some positions of the endless sequence."""
    epochs, places = np.divmod(positions, count)
    records = np.empty_like(positions)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        records[chosen] = _permutation(count, seed, int(epoch))[places[chosen]]
    return records


# An epoch's permutation serves all of its batches, also while the next one begins.
@functools.lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> Int[np.ndarray, " count"]:
    return np.random.default_rng((seed, epoch)).permutation(count)
