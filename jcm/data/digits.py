"""Handwritten digits, 1,797 of 8x8: real data without a download."""

import numpy as np
import tensorflow_datasets as tfds

from jcm.data import builder


class Digits(builder.PictureBuilder, skip_registration=True):
    """The UCI optical digits (Alpaydin, Kaynak 1998) that scikit-learn carries.

    In the order of `sklearn.datasets.load_digits`, its values 0..16 stretched over
    0..255; one split, train.
    """

    image_shape = (8, 8, 1)
    class_names = tuple("0123456789")

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        # Slow to import (scipy), and needed once in the life of a data directory.
        from sklearn import datasets

        digits = datasets.load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        pictures = zip(images, digits.target.tolist(), strict=True)
        return {"train": self._generate_examples("train", pictures)}
