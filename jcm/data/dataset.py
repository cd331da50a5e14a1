"""Opens data sets by name, after preparing them on disk once."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from jaxtyping import Int, Int32

from jcm.data import builder as builder_lib
from jcm.data import cifar10, digits, image_folder, parts, prepared
from jcm.data.records import Batch, Records
from jcm.runtime import cache, disk, locks
from jcm.runtime.errors import JcmError
from jcm.runtime.paths import expanded

# How TensorFlow Datasets names the folder of a version that it has not finished.
_INCOMPLETE = f"incomplete.{'[0-9A-Z]' * 6}_[0-9]*"

BUILDERS = {
    "digits": digits.Digits,
    "cifar10": cifar10.Cifar10,
    "image_folder": image_folder.ImageFolder,
}

# The name of data that a program passes, which is not stored.
GIVEN = "arrays"
# A summary lists the pictures in each class for at most this many classes.
_LISTED_CLASSES = 12

# Records that are read at a time.
_READ = 1024


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One split of a prepared data set.

    Attributes:
      name: the name of the builder.
      image_size: height and width of the images.
      channels: 1 for grey or 3 for colour.
      class_names: the meaning of the labels 0, 1, ...
      fingerprint: a hash of the content: images, labels and class names in order. It
        does not depend on where the data set is stored.
    """

    name: str
    image_size: int
    channels: int
    class_names: tuple[str, ...]
    fingerprint: str
    _records: Records = dataclasses.field(repr=False, compare=False)
    _is_kept: bool = dataclasses.field(repr=False, compare=False)
    # Returns the label of each record; None if they are not known without reading it.
    _labels: Callable[[], Int32[np.ndarray, " n"] | None] = dataclasses.field(
        repr=False, compare=False
    )
    # All records, if they are already in memory.
    _in_memory: Batch | None = dataclasses.field(
        default=None, repr=False, compare=False
    )

    def __len__(self) -> int:
        return len(self._records)

    @property
    def in_memory(self) -> bool:
        """Whether all images are kept in memory, from their first use on."""
        return self._is_kept

    def summary(self) -> str:
        """Returns the number of pictures, in all and in each class, in words."""
        total = _count(len(self), "pictures", "picture")
        names = self.class_names
        if len(names) == 1:
            return f"{total} in one class, {names[0]}"
        labels = self._labels()
        if labels is None:
            return f"{total} in {len(names)} classes"
        sizes = np.bincount(labels, minlength=len(names)).tolist()
        empty = sizes.count(0)
        more = f"; {_count(empty, 'classes', 'class')} without any" if empty else ""
        if len(names) <= _LISTED_CLASSES:
            each = ", ".join(map("{}: {:,}".format, names, sizes))
            return f"{total} in {len(names)} classes ({each}){more}"
        least, most = min(sizes), max(sizes)
        if least == most:
            return f"{total} in {len(names):,} classes of {least:,}"
        fewest, largest = names[sizes.index(least)], names[sizes.index(most)]
        return (
            f"{total} in {len(names):,} classes, from {least:,} (class {fewest}) to"
            f" {most:,} (class {largest}) in each{more}"
        )

    def arrays(self) -> Batch:
        """Returns all records: image uint8 (n, h, w, c) and label int32 (n,).

        The arrays are read-only if the data set is small enough to be kept in memory.
        Otherwise they are a new copy, which must fit into memory.
        """
        return self._kept if self._is_kept else self._read_all()

    def take(self, indices: Int[np.ndarray, " n"]) -> Batch:
        """Copies some records: image uint8 (n, h, w, c), label int32 (n,)."""
        if self._is_kept:
            return {key: value[indices] for key, value in self._kept.items()}
        return self._records.take(indices)

    @functools.cached_property
    def _kept(self) -> Batch:
        if self._in_memory is not None:
            return self._in_memory
        arrays = self._read_all()
        for array in arrays.values():
            array.flags.writeable = False
        return arrays

    def _read_all(self) -> Batch:
        count, size = len(self), self.image_size
        images = np.empty((count, size, size, self.channels), np.uint8)
        arrays: Batch = {"image": images, "label": np.empty(count, np.int32)}
        with tqdm.tqdm(total=count, desc="Reading", delay=2) as bar:
            for start in range(0, count, _READ):
                part = np.arange(start, min(start + _READ, count))
                for key, value in self._records.take(part).items():
                    arrays[key][start : start + len(part)] = value
                bar.update(len(part))
        return arrays


def load(config_data: Any, split: str = "train") -> Dataset:
    """Opens a data set, and prepares it on disk if it is not there yet.

    Args:
      config_data: the `data` section of a config. `name` is a key of `BUILDERS`; `path`
        is the source, if the builder needs one; `dir` is the folder of prepared data
        sets, by default `$JCM_CACHE/data` or ~/.cache/jcm/data; `image_size` and
        `channels` must be those of the data set; a data set of up to `cache_mib` MiB is
        kept in memory.
      split: a split in the notation of tfds: train, test, train[:1000]. If the records
        are in order, as those of a folder, each part has its share of every class.

    Raises:
      JcmError: if the name or the split is unknown, the image size or channels are
        wrong, the source is missing or broken, or what was prepared has changed.
    """
    if config_data.name == GIVEN:
        raise JcmError(
            f"config.data.name={GIVEN!r}: the data was passed to jcm.train; pass it"
            " again to jcm.train or jcm.evaluate, as data=..."
        )
    if config_data.name not in BUILDERS:
        known = ", ".join(BUILDERS)
        raise JcmError(
            f"config.data.name={config_data.name!r} is unknown: use one of {known}"
        )
    builder = _prepared(config_data)
    opened = parts.open_part(builder, split)
    records = prepared.Checked(opened, pathlib.Path(builder.data_path))
    image_size, _, channels = builder.info.features["image"].shape
    # All splits are hashed, since one split can name several, as train[:10]+test does.
    identity = [config_data.name, split, dict(builder.info.metadata)]
    if builder.in_order and parts.is_mixed(builder, split):
        identity.append("mixed")
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    kept_bytes = len(records) * image_size**2 * channels
    return Dataset(
        name=config_data.name,
        image_size=image_size,
        channels=channels,
        class_names=tuple(builder.info.features["label"].names),
        fingerprint=digest.hexdigest()[:16],
        _records=records,
        _is_kept=kept_bytes <= config_data.cache_mib * 2**20,
        _labels=functools.partial(parts.labels, builder, split),
    )


def _count(number: int, several: str, one: str) -> str:
    return f"{number:,} {one if number == 1 else several}"


def _prepared(config_data: Any) -> builder_lib.ImageBuilder:
    """Returns the builder of a data set that is prepared on disk."""
    cls = BUILDERS[config_data.name]
    config = cls.source(config_data)
    folder = expanded(config_data.dir or cache.folder("data"))
    place = cls.folder_in(folder, config)
    # A complete folder appears by renaming.
    is_prepared = place.exists()
    if is_prepared:
        prepared.check(place)
    builder = cls(data_dir=folder, config=config)
    size, _, channels = builder.info.features["image"].shape
    if (config_data.image_size, config_data.channels) != (size, channels):
        raise JcmError(
            f"{config_data.name} has {size}x{size} images of {channels} channels: pass "
            f"--config.data.image_size={size} --config.data.channels={channels}"
        )
    if is_prepared:
        return builder
    try:
        # Many processes may start at once; the first one prepares the data for all.
        with locks.exclusive(folder) as alone:
            if alone:
                _remove_incomplete(folder)
            builder = cls(data_dir=folder, config=config)
            builder.download_and_prepare(
                file_format="array_record",
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
    except (OSError, RuntimeError) as error:
        # array_record raises RuntimeError if the disk is full. Without file locks,
        # renaming the finished folder fails if another process was faster; the result
        # of that process is then used instead.
        builder = cls(data_dir=folder, config=config)
        if not place.exists():
            what = f"cannot prepare {config_data.name} in {folder}"
            raise JcmError(
                f"{disk.cannot_write(folder / 'new', error, what)};"
                " --config.data.dir names one"
            ) from error
    return builder


def _remove_incomplete(folder: pathlib.Path) -> None:
    """Removes what preparations have left that a kill has ended.

    Only the process that holds the lock of the folder may call this.
    """
    found = [
        path
        for name in BUILDERS
        for depth in ("", "*/")
        for path in folder.glob(f"{name}/{depth}{_INCOMPLETE}")
    ]
    for path in found:
        shutil.rmtree(path, ignore_errors=True)
        for parent in path.relative_to(folder).parents[:-1]:
            with contextlib.suppress(OSError):  # other versions are there
                (folder / parent).rmdir()
