"""Tests of the scores: closed forms, numbers of others, good and bad images."""

import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
import stand_in
import torch_weights
from PIL import Image, ImageFilter
from scipy import linalg
from skimage.util import view_as_blocks

from jcm import config as config_lib
from jcm import data
from jcm.commands.benchmark import scores as benchmark
from jcm.data import given
from jcm.metrics import (
    frechet,
    inception_score,
    kid,
    networks,
    precision_recall,
    reference,
    scores,
    statistics,
    weights,
)
from jcm.metrics.classifier import Classifier
from jcm.metrics.networks import inception
from jcm.runtime.errors import JcmError


def _ready(config, dataset):
    made = scores.create(config, dataset)
    for score in made:
        score.prepare()
    return made


def _distance(a, b):
    return frechet.distance(frechet.moments(a), frechet.moments(b))


def _by_scipy(a, b):
    """The definition, with the square root of the product of the covariances."""
    cov_a, cov_b = (np.cov(x, rowvar=False) for x in (a, b))
    root = linalg.sqrtm(cov_a @ cov_b).real
    square = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    return square + np.trace(cov_a + cov_b - 2 * root)


def test_frechet_distance_of_shifted_and_scaled_gaussians():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((400, 6))
    assert _distance(a, a) == pytest.approx(0, abs=1e-9)
    assert _distance(a, a + 3) == pytest.approx(6 * 9)
    scaled = (a - a.mean(axis=0)) * 2 + a.mean(axis=0)
    expected = np.trace(np.cov(a, rowvar=False))  # (2 - 1)^2 tr(A)
    assert _distance(a, scaled) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "m", "size"), [(300, 400, 5), (500, 300, 64)])
def test_frechet_distance_equals_the_square_root_of_scipy(n, m, size):
    rng = np.random.default_rng(1)
    a = rng.standard_normal((n, size)) @ rng.standard_normal((size, size))
    b = rng.standard_normal((m, size)) @ rng.standard_normal((size, size)) + 0.5
    assert _distance(a, b) == pytest.approx(_by_scipy(a, b), rel=1e-8)


def test_frechet_distance_with_fewer_samples_than_dimensions():
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((40, 128)), 1.5 * rng.standard_normal((60, 128))
    assert _distance(a, a) == pytest.approx(0, abs=1e-9)
    assert _distance(a, a + 1) == pytest.approx(128, abs=1e-9)
    # tr (A B)^(1/2) is the sum of the singular values of a small matrix.
    (x, y) = ((f - f.mean(axis=0)) / np.sqrt(len(f) - 1) for f in (a, b))
    overlap = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    expected = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    expected += np.sum(x**2) + np.sum(y**2) - 2 * overlap
    assert _distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert _distance(a, b) == pytest.approx(_by_scipy(a, b), rel=1e-6)


def test_moments_do_not_depend_on_the_batches():
    features = 1000 + np.random.default_rng(3).standard_normal((70, 5))
    total = frechet.MomentSum(5)
    for start in range(0, 70, 16):
        total.add(features[start : start + 16])
    found = total.moments()
    assert found.count == 70
    np.testing.assert_allclose(found.mean, features.mean(axis=0), rtol=1e-14)
    expected = np.cov(features, rowvar=False)
    np.testing.assert_allclose(found.cov, expected, atol=1e-9)


@pytest.mark.parametrize(
    ("features", "message"),
    [(np.zeros((1, 3)), "too few"), (np.full((5, 3), np.nan), "not a finite")],
)
def test_broken_features_raise(features, message):
    with pytest.raises(JcmError, match=message):
        _distance(features, np.ones((5, 3)))


def test_features_of_different_networks_raise():
    with pytest.raises(JcmError, match="of 3 and of 4 numbers"):
        _distance(np.eye(3), np.eye(4))


# --- scores of rows of features


@pytest.fixture(scope="module")
def two_sets():
    """The features for which scores of torch-fidelity are stored."""
    rng = np.random.RandomState(41)
    a = rng.standard_normal((1200, 16)).astype("f4")
    b = (1.1 * rng.standard_normal((1500, 16)) + 0.2).astype("f4")
    return a, b


def test_scores_of_rows_equal_those_of_torch_fidelity(two_sets):
    a, b = two_sets
    theirs = torch_weights.theirs("scores")
    assert kid.distance(a, b) == pytest.approx(float(theirs["kid"]), abs=1e-6)
    assert inception_score.score(3 * a) == pytest.approx(float(theirs["is"]), rel=1e-9)
    ours = precision_recall.precision_recall(a, b)
    for name, value in ours.items():
        assert value == pytest.approx(float(theirs[name]), abs=1e-5)


def test_density_and_coverage_by_brute_force(two_sets, monkeypatch):
    a, b = two_sets
    monkeypatch.setattr(precision_recall, "_BLOCK", 256)
    ours = precision_recall.density_coverage(a, b)
    between = np.linalg.norm(a[:, None] - b, axis=2)
    radii = np.sort(np.linalg.norm(b[:, None] - b, axis=2), axis=1)[:, 5]
    assert ours["density"] == pytest.approx((between <= radii).sum(axis=1).mean() / 5)
    assert ours["coverage"] == pytest.approx(np.mean(between.min(axis=0) < radii))
    assert precision_recall.precision_recall(a, b) == {
        "precision": pytest.approx(float(torch_weights.theirs("scores")["precision"])),
        "recall": pytest.approx(float(torch_weights.theirs("scores")["recall"])),
    }


@pytest.mark.parametrize(("count", "size"), [(4, 700), (6, 256), (4, 9)])
def test_the_smallest_elements_are_those_that_sorting_finds(count, size):
    found = np.random.RandomState(7).standard_normal((3, size)).astype("f4")
    found[1, ::2] = np.inf
    expected = np.sort(found, axis=1)[:, :count]
    for axis, array in ((1, found), (0, found.T)):
        least = precision_recall._smallest(jnp.asarray(array), count, axis)
        np.testing.assert_array_equal(least, expected)


def test_scores_of_two_samples_of_one_distribution(monkeypatch):
    monkeypatch.setattr(kid, "_SUBSETS", 10)
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((2, 1500, 8)).astype("f4")
    assert abs(kid.distance(a, b)) < 0.01 < kid.distance(a, b + 1)
    same = precision_recall.precision_recall(a, b)
    far = precision_recall.precision_recall(a + 9, b)
    assert min(same.values()) > 0.8
    assert far == {"precision": 0, "recall": 0}
    covered = precision_recall.density_coverage(a, b)
    assert covered["density"] == pytest.approx(1, abs=0.1)
    assert covered["coverage"] > 0.9


def test_inception_score_of_certain_and_of_uncertain_predictions():
    clear = 50 * np.eye(7)[np.arange(700) % 7]
    assert inception_score.score(clear) == pytest.approx(7)
    assert inception_score.score(np.zeros((70, 7))) == pytest.approx(1)


@pytest.mark.parametrize(
    "score",
    [
        lambda few: kid.distance(few, np.zeros((2000, 2))),
        inception_score.score,
        lambda few: precision_recall.precision_recall(few, np.zeros((100, 2))),
        lambda few: precision_recall.density_coverage(np.zeros((100, 2)), few),
    ],
)
def test_too_few_rows_raise(score):
    with pytest.raises(JcmError, match="raise config.eval.num_images"):
        score(np.zeros((3, 2)))


# --- of images


@pytest.fixture(scope="module")
def digits(tiny):
    return data.load(tiny("digits_edm").data)


@pytest.fixture
def config(tiny, tmp_path, monkeypatch):
    """Scores with a tiny network in place of Inception, and an empty cache."""
    monkeypatch.setattr(kid, "_SUBSETS", 5)
    monkeypatch.setenv("JCM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "path", lambda name, folder: tmp_path)
    monkeypatch.setattr("jcm.metrics.networks.load", stand_in.load)
    names = ("fid", "sfid", "kid", "inception_score", "precision_recall")
    names += ("density_coverage",)
    return tiny("digits_edm", **{"eval.scores": names, "eval.num_images": 1000})


def test_all_scores_of_one_network_at_once(config, digits, tmp_path):
    (score,) = _ready(config, digits)
    real = digits.arrays()["image"]
    same = score(real)
    assert set(same) == {
        *("fid", "sfid", "kid", "inception_score", "precision", "recall"),
        *("density", "coverage"),
    }
    assert same["fid"] == pytest.approx(0, abs=1e-9)
    assert same["precision"] == same["recall"] == same["coverage"] == 1
    rng = np.random.default_rng(0)
    noise = score(rng.integers(0, 256, real.shape, np.uint8))
    assert noise["fid"] > 10 and noise["precision"] < 0.1 and noise["kid"] > 0.5
    kept = sorted((tmp_path / "cache" / "reference").iterdir())
    assert [path.stem.rpartition("-")[2] for path in kept] == ["rows", "spatial"]
    before = [path.stat().st_mtime_ns for path in kept]
    (again,) = _ready(config, digits)
    assert again(real) == same
    with config.unlocked():  # One of the features, without its rows.
        config.eval.scores = ("fid",)
    (fid,) = _ready(config, digits)
    assert fid(real) == {"fid": same["fid"]}
    assert [path.stat().st_mtime_ns for path in kept] == before


def test_fewer_images_than_features_raise(config, digits):
    with config.unlocked():
        config.eval.scores = ("fid",)
    (score,) = _ready(config, digits)
    with pytest.raises(
        JcmError, match="fid needs at least 17 images, but there are 16 samples: raise"
    ):
        score(digits.arrays()["image"][:16])
    assert score(digits.arrays()["image"][:17])["fid"] > 0


@pytest.mark.parametrize(
    ("count", "real", "message"),
    [
        (
            16,
            1797,
            "fid needs at least 17 images, but config.eval.num_images is 16: ra",
        ),
        (400, 16, "fid needs at least 17 images, but .*digits has 16: choose o"),
    ],
)
def test_too_few_images_raise_before_any_are_sampled(
    config, digits, monkeypatch, count, real, message
):
    with config.unlocked():
        config.eval.scores, config.eval.num_images = ("fid", "inception_score"), count
    monkeypatch.setattr(type(digits), "__len__", lambda _: real)
    with pytest.raises(JcmError, match=message):
        scores.create(config, digits)


def test_statistics_are_computed_again_for_a_changed_network(
    config, digits, tmp_path, monkeypatch
):
    with config.unlocked():
        config.eval.scores = ("fid",)
    (before,) = _ready(config, digits)
    known = before.identity()
    monkeypatch.setattr(inception, "VERSION", 2)
    (after,) = _ready(config, digits)
    assert len(list((tmp_path / "cache" / "reference").iterdir())) == 2
    assert list(known) == list(after.identity()) == ["fid"]
    assert known != after.identity()


@pytest.mark.parametrize(
    "images", [np.zeros((40, 8, 8, 1), np.float32), np.zeros((40, 8, 8), np.uint8)]
)
def test_images_that_are_not_pixels_raise(images):
    with pytest.raises(JcmError, match="cannot score .*: pass uint8 images"):
        statistics.collect(stand_in.network(), lambda i: images[i], 40, wanted={"pool"})


def test_published_references_are_read(config, digits, tmp_path):
    real = digits.arrays()["image"]
    found = statistics.collect(
        stand_in.network(), lambda i: real[i], len(real), wanted={"pool", "spatial"}
    )
    pool, spatial = found["pool"].moments, found["spatial"].moments
    edm = {"mu": pool.mean, "sigma": pool.cov}
    batch = edm | {"mu_s": spatial.mean, "sigma_s": spatial.cov, "arr_0": real}
    np.savez(tmp_path / "edm.npz", **edm)
    np.savez(tmp_path / "batch.npz", **batch)
    with config.unlocked():
        config.eval.reference = str(tmp_path / "batch.npz")
    (by_batch,) = _ready(config, digits)
    assert by_batch(real)["fid"] == pytest.approx(0, abs=1e-9)
    assert by_batch(real)["recall"] == 1
    with config.unlocked():
        config.eval.reference = str(tmp_path / "edm.npz")
    (by_moments,) = _ready(config, digits)
    # The rest is computed from the data set.
    assert by_moments(real[:1200]) == pytest.approx(by_batch(real[:1200]), abs=1e-6)
    with config.unlocked():
        config.eval.scores = ("classifier",)
    with pytest.raises(JcmError, match="edm.npz is for Inception, which no score of"):
        _ready(config, digits)


def _moments(*corner):
    """Returns moments of 16 numbers, with other values in a corner of sigma."""
    sigma = np.eye(16)
    sigma[:2, :2] = np.reshape(corner, (2, 2)) if len(corner) > 1 else corner[0]
    return {"mu": np.zeros(16), "sigma": sigma}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"arr_0": np.zeros((9, 32, 32, 1), np.uint8)}, "the samples are 8x8"),
        ({"mu": np.zeros(16), "sigma": np.zeros((4, 4))}, "sigma has the shape"),
        (_moments(np.nan), "are not finite"),
        (_moments(1, 2, 0, 1), "not symmetric"),
        (_moments(1, 0, 0, -2), "a variance is negative"),
        (_moments(1, 2, 2, 1), "variances allow"),
        ({"mu": np.zeros(16), "sigma": np.eye(16, dtype=complex)}, "is of type compl"),
        (
            {"mu": np.zeros(3), "sigma": np.eye(3)},
            r"mu has the shape .3,., and not .16.: name",
        ),
        (
            {"arr_0": np.zeros((9, 8, 8, 1), np.uint8)},
            "fid needs at least 17 images, but .* has 9",
        ),
        ({"other": np.zeros(3)}, "no statistics and no images: name an .npz"),
        ({"mu": np.array([None])}, "mu is of type object"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_reference_raises(config, digits, tmp_path, content, message):
    path = tmp_path / "reference.npz"
    if content is None:
        path.write_text("no statistics")
    else:
        np.savez(path, **content)
    with config.unlocked():
        config.eval.scores, config.eval.reference = ("fid",), str(path)
    with pytest.raises(JcmError, match=message):
        _ready(config, digits)


def test_damaged_statistics_of_the_cache_are_computed_again(
    digits, monkeypatch, tmp_path, caplog
):
    monkeypatch.setenv("JCM_CACHE", str(tmp_path))
    network = stand_in.network()
    whole = reference.of_dataset(network, digits, {"pool"}, {"pool"})["pool"]
    (path,) = (tmp_path / "reference").iterdir()
    with np.load(path) as file:
        good = dict(file)
    cut = path.read_bytes()[:-100]
    for name, wrong in (
        ("mean", np.full_like(good["mean"], np.nan)),
        ("cov", good["cov"][:-1, :-1]),
        ("count", np.int64(-5)),
        ("count", np.int64(1000)),
        ("rows", good["rows"][:-1]),
        ("rows", np.where(good["rows"] > 1, np.inf, good["rows"])),
        ("", cut),
    ):
        if name:
            np.savez(path, **good | {name: wrong})
        else:
            path.write_bytes(cut)
        caplog.clear()
        found = reference.of_dataset(network, digits, {"pool"}, {"pool"})["pool"]
        assert "it is computed again" in caplog.text and str(path) in caplog.text
        np.testing.assert_array_equal(found.moments.mean, whole.moments.mean)
        np.testing.assert_array_equal(found.rows, whole.rows)
    caplog.clear()
    reference.of_dataset(network, digits, {"pool"}, set())
    assert not caplog.text


def test_rows_of_a_large_set_are_of_some_of_its_images(digits, monkeypatch, tmp_path):
    monkeypatch.setenv("JCM_CACHE", str(tmp_path))
    whole = reference.of_dataset(stand_in.network(), digits, {"pool"}, {"pool"})
    monkeypatch.setattr(reference, "_MOST_ROWS", 100)
    monkeypatch.setenv("JCM_CACHE", str(tmp_path / "other"))
    part = reference.of_dataset(stand_in.network(), digits, {"pool"}, {"pool"})
    assert len(whole["pool"].rows) == 1797
    assert len(part["pool"].rows) == 100
    np.testing.assert_array_equal(whole["pool"].moments.cov, part["pool"].moments.cov)


def test_the_packaged_network_ranks_real_blurred_and_random_images(optimized):
    network = networks.load("efficientnet_lite0")
    patches = np.concatenate(
        [
            view_as_blocks(photograph[:288, :432], (16, 16, 3)).reshape(-1, 16, 16, 3)
            for photograph in (skimage.data.chelsea(), skimage.data.coffee())
        ]
    )
    order = np.random.default_rng(0).permutation(len(patches))
    half, other = patches[order[::2]], patches[order[1::2]]
    blur = ImageFilter.GaussianBlur(1)
    images = {
        "reference": half,
        "real": other,
        "blurred": np.stack(
            [np.asarray(Image.fromarray(x).filter(blur)) for x in other]
        ),
        "noise": np.random.default_rng(0).integers(0, 256, other.shape, np.uint8),
    }
    moments = [
        statistics.collect(network, each.__getitem__, len(half), wanted={"stage"})[
            "stage"
        ].moments
        for each in images.values()
    ]
    real, blurred, noise = (frechet.distance(each, moments[0]) for each in moments[1:])
    assert 0 < 2 * real < blurred < noise / 2


# --- the classifier


@pytest.fixture(scope="module")
def classifier(tiny, digits):
    return _ready(tiny("digits_edm", **{"eval.scores": ("classifier",)}), digits)[0]


def test_the_classifier_ranks_real_and_bad_images(digits, classifier):
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


def test_the_classifier_scores_whether_samples_have_their_label(digits, classifier):
    arrays = digits.arrays()
    image, label = arrays["image"][:200], arrays["label"][:200]
    assert classifier(image, label.tolist())["as_asked"] > 0.97
    assert classifier(image, ((label + 1) % 10).tolist())["as_asked"] < 0.05


def test_a_class_without_real_images_does_not_shift_the_others():
    labels = np.repeat([0, 2], 40)
    images = np.repeat([20, 230], 40)[:, None, None, None] + np.zeros((80, 4, 4, 1))
    images = images.astype(np.uint8)
    found = Classifier(given.load((images, labels), 4, 1, tuple("abc")), 80)
    found.prepare()
    assert found.recognise(images).tolist() == labels.tolist()
    score = found(images, labels.tolist())
    assert (score["as_asked"], score["rarest"], score["commonest"]) == (1, 0, 0.5)
    few = given.load((images[8:72], labels[8:72]), 4, 1, tuple("abc"))
    with pytest.raises(JcmError, match="'classifier' needs at least 65 .* has 64: cho"):
        Classifier(few, 80)


def test_the_first_score_decides():
    assert scores.main_column(("classifier", "fd_efficientnet_lite0")) == "fd"
    assert scores.main_column(("precision_recall", "fid")) == "precision"
    for name, column in (
        ("digits_cd", "fd"),
        ("digits_ct", "fd"),
        ("digits_edm", "fd"),
        ("cifar10_cd", "fd_efficientnet_lite0"),
        ("folder_cd", "fd_efficientnet_lite0"),
    ):
        found = config_lib.load(f"configs/{name}.py")
        assert scores.main_column(found.eval.scores) == column
        assert found.search.score == ""


def test_unknown_scores_raise(tiny, digits):
    with pytest.raises(
        JcmError, match="'fidd' is unknown: use some of classifier, fid"
    ):
        _ready(tiny("digits_edm", **{"eval.scores": ("fidd",)}), digits)


def test_benchmark_of_scores_measures(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "_FEATURES", 64)
    found = benchmark.measure(1000, str(tmp_path), images=3)
    for name in (
        "efficientnet_lite0_images_per_second",
        "moments_seconds",
        "frechet_seconds",
        "precision_recall_seconds",
        "precision_recall_peak_memory_gib",
    ):
        assert found[name] > 0
    assert "inception_images_per_second" not in found
