"""1,797 handwritten digits of 8x8 pixels: real data without a download."""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jcm.data import builder


class Digits(builder.ImageBuilder):
    """The UCI optical digits (Alpaydin, Kaynak 1998) that scikit-learn contains.

    They keep the order of `sklearn.datasets.load_digits`; its values 0..16 are scaled
    to 0..255. The only split is train.
    """

    image_shape = (8, 8, 1)
    class_names = tuple("0123456789")

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Any]:
        # The import is slow, and it is needed only when the data set is prepared.
        from sklearn import datasets

        digits = datasets.load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        examples = zip(images, digits.target.tolist(), strict=True)
        return {"train": self._generate_examples("train", examples)}
