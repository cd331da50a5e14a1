"""Parts of a split, such as train[:90%]: which records they contain."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jaxtyping import Int, Int32

from jcm.data import builder as builder_lib
from jcm.data.records import Batch, Records
from jcm.runtime.errors import JcmError, one_line

# A part is cut from records that are shuffled with this seed.
_SEED = 0


def open_part(builder: builder_lib.ImageBuilder, split: str) -> Records:
    """Returns the records of a part of a data set.

    Args:
      builder: of a data set that is prepared.
      split: in the notation of tfds, such as train[:90%]+test.

    Raises:
      JcmError: if there is no such split, or no record in it.
    """
    if builder.in_order or "+" in split:
        pieces = _cut(builder, split)
        repeated = _repeated(pieces)
        if repeated:
            logging.warning(
                "the parts of config.data.split=%r overlap: %d images are used again",
                *(split, repeated),
            )
        sources = [builder.as_data_source(piece.split) for piece in pieces]
        return _Part(sources, [piece.numbers for piece in pieces])
    try:
        source = builder.as_data_source(split)
        count = len(source)  # an error if the part ends before it starts
    except (ValueError, NotImplementedError):
        _cut(builder, split)  # explains the error
        raise
    return _Part([source], [np.arange(count)])


def is_mixed(builder: builder_lib.ImageBuilder, split: str) -> bool:
    """Returns whether a part is cut from the records in another order than theirs."""
    return any(piece.is_mixed for piece in _cut(builder, split))


def labels(builder: builder_lib.ImageBuilder, split: str) -> Int32[np.ndarray, " n"]:
    """Returns the labels of a part, without reading its images."""
    pieces = _cut(builder, split)
    return np.concatenate([builder.labels(p.split)[p.numbers] for p in pieces])


class _Part:
    """Records that are chosen from several sources.

    They are read many at a time, since each reading of an ArrayRecord file copies the
    places of all of its records.
    """

    def __init__(self, sources: Sequence[Any], numbers: list[Int[np.ndarray, " n"]]):
        """Takes sources of tfds, and the numbers of the records of each."""
        self._sources = sources
        self._shape = sources[0].dataset_info.features["image"].shape
        self._numbers = np.concatenate(numbers)
        self._source_of = np.repeat(np.arange(len(sources)), list(map(len, numbers)))

    def __len__(self) -> int:
        return len(self._numbers)

    def take(self, numbers: Int[np.ndarray, " n"]) -> Batch:
        sources, inside = self._source_of[numbers], self._numbers[numbers]
        images = np.empty((len(numbers), *self._shape), np.uint8)
        labels = np.empty(len(numbers), np.int32)
        for i, source in enumerate(self._sources):
            places = np.flatnonzero(sources == i).tolist()
            found = source.__getitems__(inside[places].tolist())
            for place, record in zip(places, found, strict=True):
                images[place], labels[place] = record["image"], record["label"]
        return {"image": images, "label": labels}


@dataclasses.dataclass(frozen=True)
class _Piece:
    """The numbers of the records of a split that are in a part, in ascending order."""

    split: str
    numbers: Int[np.ndarray, " n"]
    is_mixed: bool


def _cut(builder: builder_lib.ImageBuilder, split: str) -> list[_Piece]:
    splits = builder.info.splits
    try:
        cuts = tfds.core.splits.AbstractSplit.from_spec(split).to_absolute(splits)
    except (ValueError, NotImplementedError) as error:
        raise JcmError(
            f"{builder.name} has no split {split!r} ({one_line(error)}): set"
            " config.data.split to another one"
        ) from error
    pieces = []
    for cut in cuts:
        numbers = np.arange(splits[cut.splitname].num_examples)
        chosen = numbers[cut.from_ : cut.to]
        is_mixed = builder.in_order and len(chosen) < len(numbers)
        if is_mixed:
            order = mixed(builder.labels(cut.splitname))
            chosen = np.sort(order[cut.from_ : cut.to])
        pieces.append(_Piece(cut.splitname, chosen, is_mixed))
    if not any(len(piece.numbers) for piece in pieces):
        count = sum(splits[cut.splitname].num_examples for cut in cuts)
        raise JcmError(
            f"config.data.split={split!r} has 0 pictures of {count}: take a larger part"
        )
    return pieces


def _repeated(pieces: Sequence[_Piece]) -> int:
    """Returns how many records of pieces are in an earlier piece, too."""
    count = 0
    for i, piece in enumerate(pieces):
        earlier = [each.numbers for each in pieces[:i] if each.split == piece.split]
        if earlier:
            count += int(np.isin(piece.numbers, np.concatenate(earlier)).sum())
    return count


def mixed(labels: Int32[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Returns an order of records of which each piece has its share of every class.

    The records of a class are shuffled, and the classes are interleaved evenly. The
    order depends on the labels alone.

    Args:
      labels: the label of each record.
    """
    shuffled = np.random.default_rng(_SEED).permutation(len(labels))
    sizes = np.bincount(labels)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    place = np.empty(len(labels))
    place[by_class] = (np.arange(len(labels)) - starts + 0.5) / np.repeat(sizes, sizes)
    return shuffled[np.argsort(place[shuffled], kind="stable")]
