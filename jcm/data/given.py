"""Data sets that a program passes: arrays, or a source of single records.

Their fingerprint identifies the content, so that a run resumes on the same data only.
That of arrays is a hash of all bytes. That of a source is a hash of its length and of
100 records at equal distances, since a source may be slow.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm
from jaxtyping import Int, Int32

from jcm.data.classes import MOST_CLASSES
from jcm.data.dataset import GIVEN, Dataset
from jcm.data.records import Batch
from jcm.runtime.errors import JcmError

# Number of records of a source that the fingerprint depends on.
_HASHED = 100


def load(
    given: Any, image_size: int, channels: int, class_names: Sequence[str] = ()
) -> Dataset:
    """Returns arrays or a source as a data set.

    Args:
      given: one of
        - images, an array of uint8 (n, h, w, c),
        - (images, labels), with the number of each image's class, 0, 1, ...,
        - a source with `len(source)` and `source[i]`, such as a list or a
          `grain.MapDataset`. A record is an image (h, w, c), a pair (image, label), or
          a dict with "image" and, optionally, "label". Threads may read it.
      image_size: height and width that the images must have.
      channels: channels that they must have, 1 or 3.
      class_names: names of the classes; by default their numbers, up to the largest
        label. To find it, all records of a source are read once.

    Raises:
      JcmError: if the type, the range or the shape of the images or labels is wrong.
    """
    if isinstance(given, Mapping) and "image" in given:
        given = (given["image"], given.get("label"))
    labels = None
    if isinstance(given, tuple) and len(given) == 2:
        given, labels = given
    if hasattr(given, "dtype") and hasattr(given, "shape"):
        images = np.asarray(given)
        return _of_arrays(images, labels, image_size, channels, class_names)
    if labels is not None or not (
        hasattr(given, "__len__") and hasattr(given, "__getitem__")
    ):
        raise JcmError(
            f"data is of type {type(given).__name__}: pass a folder, images,"
            " (images, labels), or a source with len() and indices"
        )
    return _of_source(given, image_size, channels, class_names)


def _of_arrays(
    images: np.ndarray,
    labels: Any,
    image_size: int,
    channels: int,
    class_names: Sequence[str],
) -> Dataset:
    """Returns a data set of arrays, which are not copied."""
    _check_images(images, "data", 4)
    _check_size(images.shape[1:], image_size, channels)
    names = tuple(class_names) or (GIVEN,)
    numbers = np.zeros(len(images), np.int32)
    if labels is not None:
        numbers = _as_labels(np.asarray(labels), len(images))
        names = tuple(class_names) or _numbers(numbers)
        _check_labels(numbers, names)
    batch = {"image": images.view(), "label": numbers}
    digest = hashlib.sha256(repr((images.shape, names)).encode())
    for array in batch.values():
        array.flags.writeable = False
        digest.update(np.ascontiguousarray(array).data)
    rows = _Rows(batch)
    make = _dataset(image_size, channels, names, digest.hexdigest())
    return make(
        _records=rows,
        _is_kept=True,
        _labels=lambda: numbers,
        _in_memory=batch,
    )


class _Rows:
    """The records of a batch in memory."""

    def __init__(self, batch: Batch):
        self._batch = batch

    def __len__(self) -> int:
        return len(self._batch["label"])

    def take(self, numbers: Int[np.ndarray, " n"]) -> Batch:
        return {key: value[numbers] for key, value in self._batch.items()}


class _Records:
    """The records of a source as dicts with a checked image and a label."""

    def __init__(self, source: Any, image_size: int, channels: int):
        self._source, self._shape = source, (image_size, image_size, channels)
        self.class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self._source)

    def take(self, numbers: Int[np.ndarray, " n"]) -> Batch:
        images = np.empty((len(numbers), *self._shape), np.uint8)
        labels = np.empty(len(numbers), np.int32)
        for place, number in enumerate(numbers.tolist()):
            record = self[number]
            images[place], labels[place] = record["image"], record["label"]
        return {"image": images, "label": labels}

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._source[index]
        if isinstance(record, Mapping):
            if "image" not in record:
                raise JcmError(
                    f"record {index} of data has {', '.join(map(str, record))} and no"
                    " image: name it 'image'"
                )
            record = (record["image"], record.get("label"))
        pair = record if isinstance(record, tuple | list) else (record, None)
        if len(pair) != 2:
            raise JcmError(
                f"record {index} of data has {len(pair)} parts: pass (image, label)"
            )
        image, label = np.asarray(pair[0]), pair[1]
        _check_images(image, f"record {index} of data", 3)
        _check_size(image.shape, self._shape[0], self._shape[2])
        number = _as_labels(np.asarray([0 if label is None else label]), 1)
        if self.class_names:
            _check_labels(number, self.class_names)
        return {"image": image, "label": number[0]}


def _of_source(
    source: Any, image_size: int, channels: int, class_names: Sequence[str]
) -> Dataset:
    """Returns a data set that reads a source when a record is needed."""
    records = _Records(source, image_size, channels)
    if not len(records):
        raise JcmError("data has no images: pass at least one")
    names, labels = tuple(class_names), None
    if not names:
        bar = tqdm.tqdm(range(len(records)), "Reading labels", delay=2)
        labels = np.asarray([records[i]["label"] for i in bar])
        names = _numbers(labels)
    records.class_names = names
    digest = hashlib.sha256(repr((len(records), names)).encode())
    chosen = np.linspace(0, len(records) - 1, _HASHED).round().astype(int)
    for i in np.unique(chosen).tolist():
        record = records[i]
        digest.update(np.ascontiguousarray(record["image"]).data)
        digest.update(record["label"].tobytes())
    make = _dataset(image_size, channels, names, digest.hexdigest())
    return make(_records=records, _is_kept=False, _labels=lambda: labels)


def _dataset(
    image_size: int, channels: int, names: tuple[str, ...], digest: str
) -> Callable[..., Dataset]:
    """Returns what makes a data set of records."""
    return functools.partial(
        Dataset,
        name=GIVEN,
        image_size=image_size,
        channels=channels,
        class_names=names,
        fingerprint=digest[:16],
    )


def _numbers(labels: Int32[np.ndarray, " n"]) -> tuple[str, ...]:
    """Returns the numbers of the classes as their names."""
    return tuple(map(str, range(labels.max() + 1)))


def _check_images(images: np.ndarray, what: str, dimensions: int) -> None:
    """Checks the type and the dimensions of images.

    Raises:
      JcmError: says what to do with `what`.
    """
    if images.dtype != np.uint8:
        raise JcmError(f"{what} {_range(images)}: pass uint8 from 0 to 255")
    shape = "(n, h, w, c)" if dimensions == 4 else "(h, w, c)"
    if images.ndim != dimensions:
        grey = images.ndim == dimensions - 1
        remedy = "; images[..., None] adds a grey channel" if grey else ""
        raise JcmError(f"{what} has shape {images.shape}: pass {shape}{remedy}")
    first, last = images.shape[-3], images.shape[-1]
    if last not in (1, 3) and first in (1, 3):
        raise JcmError(
            f"{what} has shape {images.shape}: the channels come last, as in"
            f" np.moveaxis(images, {dimensions - 3}, {dimensions - 1})"
        )
    if images.shape[0] == 0:
        raise JcmError(f"{what} has no images: pass at least one")


def _range(images: np.ndarray) -> str:
    """Returns the type and the range of images in words, and what converts them."""
    if images.dtype.kind not in "iuf" or not images.size:
        return f"is {images.dtype}"
    least, most = images.min(), images.max()
    found = f"is {images.dtype} from {least:.3g} to {most:.3g}"
    if images.dtype.kind != "f":
        return found
    if 0 <= least and most <= 1:
        return f"{found}, which np.uint8(np.round(255 * images)) converts"
    if -1 <= least and most <= 1:
        return f"{found}, which jcm.to_uint8(images) converts"
    return found


def _check_size(shape: tuple[int, ...], image_size: int, channels: int) -> None:
    """Checks that images have the size of the config.

    Raises:
      JcmError: names the setting to change.
    """
    height, width, last = shape
    if height != width or last not in (1, 3):
        raise JcmError(
            f"data has images of {width}x{height} with {last} channels: pass square"
            " ones with 1 or 3 channels"
        )
    if (height, last) != (image_size, channels):
        raise JcmError(
            f"data has images of {height}x{height} with {last} channels, and the config"
            f" {image_size}x{image_size} with {channels}: set"
            f" config.data.image_size={height} and config.data.channels={last}"
        )


def _as_labels(labels: np.ndarray, count: int) -> Int32[np.ndarray, " n"]:
    """Returns labels as int32.

    Raises:
      JcmError: if they are not one whole number for each image, at least 0.
    """
    if labels.shape != (count,):
        raise JcmError(
            f"labels of data have shape {labels.shape} for {count} images: pass the"
            " number of the class of each"
        )
    if labels.dtype.kind not in "iu":
        raise JcmError(f"labels of data are {labels.dtype}: pass whole numbers")
    if labels.min() < 0:
        raise JcmError(f"label {labels.min()} of data must be at least 0")
    if labels.max() >= MOST_CLASSES:
        raise JcmError(
            f"data has labels up to {labels.max()}: number the classes 0, 1, ..."
        )
    return labels.astype(np.int32)


def _check_labels(labels: Int32[np.ndarray, " n"], names: Sequence[str]) -> None:
    """Checks that every label has a name.

    Raises:
      JcmError: if one has none.
    """
    if labels.max() >= len(names):
        raise JcmError(
            f"label {labels.max()} of data has no name: class_names has {len(names)},"
            f" for 0 to {len(names) - 1}"
        )
