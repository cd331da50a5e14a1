"""Scores by a small classifier of pixels, for small labelled data sets."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from sklearn.neural_network import MLPClassifier

from jcm.data import Dataset
from jcm.data import images as images_lib
from jcm.metrics import features, frechet
from jcm.runtime.errors import JcmError

COLUMNS = ("confident", "fd", "rarest", "commonest", "as_asked")
_HIDDEN = (128, 64)


class Classifier:
    """scikit-learn's MLPClassifier((128, 64)), fitted on all real images.

    It sees pixels in [-1, 1]; its 64 hidden units are the features of the Fréchet
    distance. Of the digits, one half lies 0.6 to 2.2 from the other.
    """

    def __init__(self, dataset: Dataset, num_images: int):
        """Fits nothing yet; see `prepare`.

        Args:
          dataset: the real images.
          num_images: how many samples there will be.

        Raises:
          JcmError: for data without classes, or too few samples.
        """
        if len(dataset.class_names) < 2:
            raise JcmError(
                f"config.eval.scores: 'classifier' needs labels, and {dataset.name} has"
                " one class: use --config.eval.scores='()'"
            )
        if num_images <= _HIDDEN[-1]:
            raise JcmError(
                f"classifier needs {_HIDDEN[-1] + 1} images at least, and"
                f" config.eval.num_images is {num_images}: raise it"
            )
        self._dataset = dataset

    def identity(self) -> dict[str, Any]:
        """What the scores depend on but the samples."""
        return {"classifier": {"data": self._dataset.fingerprint}}

    def prepare(self) -> None:
        """Fits the classifier, in seconds."""
        real = self._dataset.arrays()
        self._classes = len(self._dataset.class_names)
        self._net = MLPClassifier(_HIDDEN, max_iter=500, random_state=0)
        self._net.fit(_flat(real["image"]), real["label"])
        self._real = frechet.moments(self._features(real["image"]))

    def __call__(
        self, images: np.ndarray, labels: Sequence[int] | None = None
    ) -> dict[str, float]:
        """Scores of samples, after `prepare`.

        Args:
          images: uint8 samples (n, h, w, c).
          labels: the class each should show; None for an unconditional model.

        Returns:
          confident: share with a top probability of at least 0.9. The mean image
            has one too, so this never speaks alone.
          fd: Fréchet distance to the real images; lower is better.
          rarest, commonest: share of the class that is seen least and most often.
          as_asked: with labels, the share recognised as the class asked for.

        Raises:
          JcmError: for anything but uint8 images.
        """
        features.check(images)
        probabilities = self._net.predict_proba(_flat(images))
        seen = probabilities.argmax(axis=1)
        shares = np.bincount(seen, minlength=self._classes) / len(images)
        scores = {
            "confident": float(np.mean(probabilities.max(axis=1) >= 0.9)),
            "fd": frechet.distance(frechet.moments(self._features(images)), self._real),
            "rarest": float(shares.min()),
            "commonest": float(shares.max()),
        }
        if labels is not None:
            scores["as_asked"] = float(np.mean(seen == np.asarray(labels)))
        return scores

    def recognise(self, images: UInt8[np.ndarray, "n h w c"]) -> Int[np.ndarray, " n"]:
        """The class that each image shows, after `prepare`."""
        return self._net.predict(_flat(images))

    def _features(self, images: UInt8[np.ndarray, "n h w c"]) -> np.ndarray:
        hidden = _flat(images)
        for weights, bias in zip(
            self._net.coefs_[:-1], self._net.intercepts_[:-1], strict=True
        ):
            hidden = np.maximum(hidden @ weights + bias, 0)
        return hidden


def _flat(images: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n d"]:
    return images_lib.to_float(images).reshape(len(images), -1)
