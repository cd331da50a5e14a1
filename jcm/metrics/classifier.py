"""Scores from a small classifier of pixels, for small data sets with classes."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

from jcm.data import Dataset
from jcm.data import images as images_lib
from jcm.metrics import features, frechet
from jcm.runtime.errors import JcmError

COLUMNS = ("confident", "fd", "rarest", "commonest", "as_asked")
"""The columns that the classifier gives."""
_HIDDEN = (128, 64)
# With no more images than numbers in a feature, the covariance is singular.
_LEAST = _HIDDEN[-1] + 1


class Classifier:
    """scikit-learn's MLPClassifier((128, 64)), fitted to all real images.

    Its input is pixels in [-1, 1], and its last 64 hidden units are the features of the
    Fréchet distance. One half of the digits is at a distance of 0.6 to 2.2 from the
    other half. This class is a `scores.ScoreGroup`.
    """

    def __init__(self, dataset: Dataset, num_images: int, given: int | None = None):
        """Checks the data set; `prepare` fits the classifier.

        Args:
          dataset: the real images with their labels.
          num_images: the number of samples that a model will make.
          given: the number of samples that another program made; None for none.

        Raises:
          JcmError: if the data has no classes, or there are too few samples or real
            images.
        """
        if len(dataset.class_names) < 2:
            raise JcmError(
                f"config.eval.scores: 'classifier' needs classes, but {dataset.name}"
                " has only one: pass labels, or use another score"
            )
        features.check_count("classifier", _LEAST, num_images, given)
        if len(dataset) < _LEAST:
            raise JcmError(
                f"'classifier' needs at least {_LEAST} images, but {dataset.name} has"
                f" {len(dataset)}: choose other scores with config.eval.scores, or none"
                " with config.eval.scores=()"
            )
        self._dataset = dataset

    def identity(self) -> dict[str, dict[str, str]]:
        """Returns all that the scores depend on except the samples."""
        return {"classifier": {"data": self._dataset.fingerprint}}

    def prepare(self) -> None:
        """Fits the classifier to the real images, which takes seconds."""
        # This import takes half of the start of a program, which only this score needs.
        from sklearn.neural_network import MLPClassifier

        real = self._dataset.arrays()
        self._classes = len(self._dataset.class_names)
        self._net = MLPClassifier(_HIDDEN, max_iter=500, random_state=0)
        self._net.fit(_flat(real["image"]), real["label"])
        self._real = frechet.moments(self._features(real["image"]))

    def __call__(
        self, images: np.ndarray, labels: Sequence[int] | None = None
    ) -> dict[str, float]:
        """Scores samples, after `prepare`.

        Args:
          images: uint8 samples (n, h, w, c).
          labels: the class that each sample was generated for; None if the model is
            unconditional.

        Returns:
          A dictionary of these columns.
          confident: share of samples with a top probability of at least 0.9. The mean
            of all images reaches it too, so compare it together with `fd`.
          fd: Fréchet distance to the real images; lower is better.
          rarest, commonest: share of the class that is recognised least and most often.
          as_asked: share recognised as the class asked for; absent without labels.

        Raises:
          JcmError: if the images are not uint8.
        """
        features.check_uint8(images)
        probabilities = self._net.predict_proba(_flat(images))
        # The classifier knows only the classes that have real images.
        seen = self._net.classes_[probabilities.argmax(axis=1)]
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
        """Returns the most probable class of each image, after `prepare`."""
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
