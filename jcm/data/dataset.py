"""Data sets: prepared once on disk, opened by name."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from jaxtyping import Int, Int32, UInt8

from jcm.data import builder as builder_lib
from jcm.data import cifar10, digits, image_folder
from jcm.runtime import download, files
from jcm.runtime.errors import JcmError

BUILDERS = {
    "digits": digits.Digits,
    "cifar10": cifar10.Cifar10,
    "image_folder": image_folder.ImageFolder,
}

Batch = dict[str, UInt8[np.ndarray, "n h w c"] | Int32[np.ndarray, " n"]]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One split of a prepared data set.

    Attributes:
      name: that of the builder.
      image_size: height and width.
      channels: 1 or 3.
      class_names: the meaning of the labels 0, 1, ...
      fingerprint: tells content from content, wherever it lies: equal for two data
        sets with the same pictures, labels and class names in the same order.
    """

    name: str
    image_size: int
    channels: int
    class_names: tuple[str, ...]
    fingerprint: str
    _records: Sequence[dict[str, Any]] = dataclasses.field(repr=False, compare=False)
    _keep_decoded: bool = dataclasses.field(repr=False, compare=False)

    def __len__(self) -> int:
        return len(self._records)

    def arrays(self) -> Batch:
        """The whole set: image uint8 (n, h, w, c) and label int32 (n,).

        Read-only where the set is small enough to be kept decoded; a copy otherwise,
        for which there must be memory.
        """
        return self._decoded if self._keep_decoded else self._decode_all()

    def take(self, indices: Int[np.ndarray, " n"]) -> Batch:
        """A fresh copy of some records: image uint8 (n, h, w, c), label int32 (n,)."""
        if self._keep_decoded:
            return {key: value[indices] for key, value in self._decoded.items()}
        return self._decode(indices.tolist())

    @functools.cached_property
    def _decoded(self) -> Batch:
        arrays = self._decode_all()
        for array in arrays.values():
            array.flags.writeable = False
        return arrays

    def _decode_all(self) -> Batch:
        # In one thread: half of the time is Python's, and more threads are slower.
        return self._decode(tqdm.tqdm(range(len(self)), "Decoding", delay=2))

    def _decode(self, indices: Collection[int]) -> Batch:
        shape = (len(indices), self.image_size, self.image_size, self.channels)
        images, labels = np.empty(shape, np.uint8), np.empty(len(indices), np.int32)
        for i, index in enumerate(indices):
            record = self._records[index]
            images[i], labels[i] = record["image"], record["label"]
        return {"image": images, "label": labels}


def load(config_data, split: str = "train") -> Dataset:
    """Opens a data set, preparing it first if this was never done.

    Args:
      config_data: the `data` part of a config. `name` is a key of `BUILDERS`; `path`
        is the source of a data set that needs one; `dir` is where prepared data sets
        lie, by default `$JCM_CACHE/data` or ~/.cache/jcm/data; `image_size` and
        `channels` must be those of the data set; `cache_mib` is the size up to which
        a set is held decoded in memory.
      split: what tfds understands: train, test, train[:1000].

    Raises:
      JcmError: unknown name, wrong shape, missing or broken source, unknown split.
    """
    if config_data.name not in BUILDERS:
        known = ", ".join(BUILDERS)
        raise JcmError(f"unknown config.data.name={config_data.name!r}: use {known}")
    builder = _prepared(config_data)
    try:
        records = builder.as_data_source(split)
    except ValueError as error:
        raise JcmError(f"{config_data.name} has no split {split!r}: {error}") from error
    image_size, _, channels = builder.info.features["image"].shape
    # The hashes of all splits, since tfds allows parts such as train[:10]+test.
    identity = [config_data.name, split, dict(builder.info.metadata)]
    identity = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    decoded_bytes = len(records) * image_size**2 * channels
    return Dataset(
        name=config_data.name,
        image_size=image_size,
        channels=channels,
        class_names=tuple(builder.info.features["label"].names),
        fingerprint=identity.hexdigest()[:16],
        _records=records,
        _keep_decoded=decoded_bytes <= config_data.cache_mib * 2**20,
    )


def _prepared(config_data) -> builder_lib.PictureBuilder:
    cls = BUILDERS[config_data.name]
    config = cls.settings(config_data)
    folder = pathlib.Path(config_data.dir or download.cache("data")).expanduser()
    builder = cls(data_dir=folder, config=config)
    size, _, channels = builder.info.features["image"].shape
    if (config_data.image_size, config_data.channels) != (size, channels):
        raise JcmError(
            f"{config_data.name} is {size}x{size} with {channels} channels: pass "
            f"--config.data.image_size={size} --config.data.channels={channels}"
        )
    # tfds renames a finished folder; its own is_prepared() warns where there is none.
    if builder.data_path.exists():
        return builder
    try:
        # Many processes may begin at once; the first prepares it for all.
        with files.locked(folder):
            builder = cls(data_dir=folder, config=config)
            builder.download_and_prepare(
                file_format="array_record",
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
    except (OSError, RuntimeError) as error:  # array_record's for a full disk
        # Without locks, tfds' renaming of the finished folder fails when another
        # process was faster; its result is as good as ours.
        builder = cls(data_dir=folder, config=config)
        if not builder.data_path.exists():
            raise JcmError(
                f"cannot prepare {config_data.name} in {folder} ({error}): "
                "pass a folder with room, --config.data.dir=<folder>"
            ) from error
    return builder
