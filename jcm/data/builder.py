"""What all our tfds builders share: labelled pictures, kept in order, as PNG."""

import hashlib
import io
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image


class Png(tfds.features.Image):
    """tfds' Image feature with Pillow on both sides.

    The stock feature encodes arrays with TensorFlow, which we do without, and decodes
    with whichever of OpenCV and Pillow it finds, with a warning about the choice.
    """

    def encode_example(self, image: UInt8[np.ndarray, "h w c"]) -> bytes:
        """Compresses pixels; one channel becomes a grey PNG."""
        buffer = io.BytesIO()
        squeezed = image[..., 0] if image.shape[-1] == 1 else image
        Image.fromarray(squeezed).save(buffer, format="png")
        return buffer.getvalue()

    def decode_example_np(self, png: bytes) -> UInt8[np.ndarray, "h w c"]:
        """The inverse, without loss."""
        return np.asarray(Image.open(io.BytesIO(png))).reshape(self.shape)


class PictureBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of the builders: a subclass says its shape, its classes and its splits.

    No builder is registered under its name, as tfds has a `cifar10` of its own and
    refuses a second one.

    Pictures keep the order in which the source lists them (shuffling is the
    pipeline's task), and `info.metadata` maps each split to a hash of its content, so
    that a data set can be recognised wherever it lies.
    """

    VERSION = tfds.core.Version("1.0.0")

    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]

    @classmethod
    def settings(cls, config_data) -> tfds.core.BuilderConfig | None:
        """What tells data sets of this builder apart; None if there is but one.

        Raises:
          JcmError: `config_data.path` does not name a source for this builder.
        """
        return None

    def _create_builder_config(self, builder_config, version):
        # tfds' own would warn of each config that its class does not list beforehand.
        return builder_config

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": Png(shape=self.image_shape, encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=self.class_names),
                }
            ),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _generate_examples(
        self,
        split: str,
        pictures: Iterable[tuple[UInt8[np.ndarray, "h w c"], int]],
    ) -> Iterator[tuple[int, dict]]:
        digest = hashlib.sha256(repr((self.image_shape, self.class_names)).encode())
        for key, (image, label) in enumerate(pictures):
            digest.update(image.tobytes())
            digest.update(label.to_bytes(4, "little"))
            yield key, {"image": image, "label": label}
        self.info.metadata[split] = digest.hexdigest()


def settings_key(*facts) -> str:
    """A short name, fit for a folder, for a data set told apart by these facts."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
