"""Scores: closed forms, and that they tell good samples from bad."""

import numpy as np
import pytest

from jcm import data, metrics
from jcm.errors import JcmError
from jcm.metrics import frechet


def test_frechet_distance_of_shifted_and_scaled_gaussians():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((400, 6))
    assert frechet.distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet.distance(a, a + 3) == pytest.approx(6 * 9)
    scaled = (a - a.mean(axis=0)) * 2 + a.mean(axis=0)
    expected = np.trace(np.cov(a, rowvar=False))  # (2 - 1)^2 tr(A)
    assert frechet.distance(a, scaled) == pytest.approx(expected)


def test_frechet_distance_of_covariances_that_commute_not():
    from scipy import linalg

    rng = np.random.default_rng(1)
    a = rng.standard_normal((300, 5)) @ rng.standard_normal((5, 5))
    b = rng.standard_normal((300, 5)) @ rng.standard_normal((5, 5)) + 0.5
    cov_a, cov_b = (np.cov(x, rowvar=False) for x in (a, b))
    root = linalg.sqrtm(cov_a @ cov_b).real
    expected = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    expected += np.trace(cov_a + cov_b - 2 * root)
    assert frechet.distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_with_fewer_samples_than_dimensions():
    rng = np.random.default_rng(2)
    a = rng.standard_normal((8, 40))
    assert frechet.distance(a, a) == pytest.approx(0, abs=1e-5)
    assert frechet.distance(a, a + 1) == pytest.approx(40, abs=1e-5)


@pytest.mark.parametrize(
    ("features", "message"),
    [(np.zeros((1, 3)), "too few"), (np.full((5, 3), np.nan), "not a finite")],
)
def test_broken_features_get_no_score(features, message):
    with pytest.raises(JcmError, match=message):
        frechet.distance(features, np.ones((5, 3)))


@pytest.fixture(scope="module")
def digits(tiny):
    return data.load(tiny("digits_edm").data)


@pytest.fixture(scope="module")
def classifier(digits):
    return metrics.create(["classifier"], digits)[0]


def test_classifier_knows_real_from_bad(digits, classifier):
    real = digits.arrays()["image"]
    half = classifier(real[::2], None)
    assert half["confident"] > 0.97
    assert half["fd"] < 2.5
    assert 0.05 < half["rarest"] <= half["commonest"] < 0.15
    rng = np.random.default_rng(0)
    noise = classifier(rng.integers(0, 256, real.shape, np.uint8), None)
    assert noise["fd"] > 50
    mean = np.broadcast_to(real.mean(axis=0).astype(np.uint8), real.shape)
    collapsed = classifier(mean, None)
    assert collapsed["fd"] > 50
    assert collapsed["commonest"] == 1


def test_classifier_tells_whether_samples_are_what_was_asked(digits, classifier):
    arrays = digits.arrays()
    image, label = arrays["image"][:200], arrays["label"][:200]
    assert classifier(image, label.tolist())["as_asked"] > 0.97
    assert classifier(image, ((label + 1) % 10).tolist())["as_asked"] < 0.05


def test_unknown_scores_are_refused(digits):
    with pytest.raises(JcmError, match="'fidd' is unknown"):
        metrics.create(["fidd"], digits)
