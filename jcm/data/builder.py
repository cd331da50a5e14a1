"""The base of the tfds builders: images with labels, stored in order as pixels."""

import abc
import hashlib
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jaxtyping import Int32, UInt8
from tensorflow_datasets.proto import tf_example_pb2

from jcm.data import prepared
from jcm.runtime import npz


class Record(tfds.features.FeaturesDict):
    """An image and its label; tfds takes longer to parse a record than to read it."""

    def deserialize_example_np(self, serialized_example: bytes, **_: Any) -> dict:
        """Parses a record; its image shares the memory of a part of it."""
        example = tf_example_pb2.Example.FromString(serialized_example)
        fields = example.features.feature
        (pixels,) = fields["image"].bytes_list.value
        (label,) = fields["label"].int64_list.value
        shape = self["image"].shape
        return {"image": np.frombuffer(pixels, np.uint8).reshape(shape), "label": label}


class _Info(tfds.core.DatasetInfo):
    """What is known of a data set; the data sets here are not among those of tfds."""

    def initialize_from_bucket(self) -> None:
        """Does nothing.

        The original method asks the servers of tfds what they know of a data set that
        is not prepared, and leaves an empty folder among the temporary files.
        """


class ImageBuilder(tfds.core.GeneratorBasedBuilder):
    """The base of the builders; subclasses define the shape, classes and splits.

    Builders are not registered with tfds, which already has a `cifar10` and accepts no
    second one.

    Images keep the order of the source, since the pipeline shuffles them. The metadata
    of a data set maps each split to a hash of its content, which identifies the data
    independently of where it is stored. The labels of a split are stored in a file of
    their own, too.
    """

    VERSION = tfds.core.Version("1.3.0")

    # Whether the records are in order of class, of name or the like, so that parts of a
    # split are taken from all of it.
    in_order = False

    @property
    @abc.abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""

    @property
    @abc.abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """The meaning of the labels 0, 1, ..."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(skip_registration=True, **options)

    @classmethod
    def source(cls, config_data: Any) -> tfds.core.BuilderConfig | None:
        """Describes the source of a data set; None if the builder has only one.

        The name of the result is different for each data set of this builder.

        Raises:
          JcmError: if `config_data.path` does not name a source for this builder.
        """
        return None

    @classmethod
    def folder_in(
        cls, root: pathlib.Path, config: tfds.core.BuilderConfig | None
    ) -> pathlib.Path:
        """Returns the folder of a prepared data set.

        Args:
          root: the folder of all data sets.
          config: what `source` returns.
        """
        of_config = root / cls.name / (config.name if config else "")
        return of_config / str(cls.VERSION)

    def _create_builder_config(self, builder_config: Any, version: Any) -> Any:
        # The original method warns of each config that the class does not list.
        return builder_config

    def _what(self) -> str:
        """Returns what is prepared, for the log."""
        return f"the data set {self.name}"

    def _log_download_bytes(self) -> None:
        # The original method prints a download of unknown size.
        logging.info("preparing %s in %s", self._what(), self.data_path)

    def _log_download_done(self) -> None:
        pass

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        super()._download_and_prepare(dl_manager, download_config)
        # The caller writes the same once more, and renames the folder.
        self.info.download_size = dl_manager.downloaded_size
        self.info.write_to_directory(self.data_dir)
        prepared.write(pathlib.Path(self.data_dir))

    def _info(self) -> tfds.core.DatasetInfo:
        return _Info(
            builder=self,
            features=Record(
                {
                    # PNG files would be smaller, and take many times as long to read.
                    "image": tfds.features.Tensor(
                        shape=self.image_shape, dtype=np.uint8, encoding="bytes"
                    ),
                    "label": tfds.features.ClassLabel(names=self.class_names),
                }
            ),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _generate_examples(
        self,
        split: str,
        examples: Iterable[tuple[UInt8[np.ndarray, "h w c"], int]],
    ) -> Iterator[tuple[int, dict]]:
        digest = hashlib.sha256(repr((self.image_shape, self.class_names)).encode())
        labels = []
        for key, (image, label) in enumerate(examples):
            digest.update(image.tobytes())
            digest.update(label.to_bytes(4, "little"))
            labels.append(label)
            yield key, {"image": image, "label": label}
        self.info.metadata[split] = digest.hexdigest()
        np.save(self._labels_file(split), np.asarray(labels, np.int32))

    def labels(self, split: str) -> Int32[np.ndarray, " n"]:
        """Returns the labels of a prepared split."""
        path = self._labels_file(split)
        count = self.info.splits[split].num_examples
        expected = npz.Array(("int32",), (count,))
        return npz.read_one(path, expected, prepared.remedy(path.parent))

    def _labels_file(self, split: str) -> pathlib.Path:
        return pathlib.Path(self.data_path) / f"labels_{split}.npy"


def source_name(*facts: Any) -> str:
    """Returns a hash of the facts that identify a source, as a name for a folder."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
