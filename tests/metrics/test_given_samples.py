"""Tests of folders of real pictures, and of samples that another program made."""

import numpy as np
import pytest
import stand_in
from PIL import Image

from jcm import data
from jcm.metrics import given, scores
from jcm.runtime.errors import JcmError

_COUNT = 60


@pytest.fixture(scope="module")
def digits(tiny):
    return data.load(tiny("digits_edm").data)


@pytest.fixture
def config(tiny, monkeypatch, tmp_path):
    """Scores with a tiny network in place of the published ones."""
    monkeypatch.setenv("JCM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("jcm.metrics.networks.load", stand_in.load)
    changes = {"eval.scores": ("fid",), "eval.num_images": _COUNT}
    return tiny("digits_edm", **changes, **{"data.dir": str(tmp_path / "data")})


@pytest.fixture(scope="module")
def folder(digits, once):
    """Digits as pictures of several sizes, in sub-folders of classes."""

    def write(place):
        for i, (image, label) in enumerate(zip(*_first(digits), strict=True)):
            enlarged = image[..., 0].repeat(1 + i % 3, 0).repeat(1 + i % 3, 1)
            (place / str(label)).mkdir(exist_ok=True)
            Image.fromarray(enlarged).save(place / str(label) / f"{i:03d}.png")

    return once("digits_as_pictures", write)


def _first(digits):
    taken = digits.take(np.arange(_COUNT))
    return taken["image"], taken["label"]


def _in_order(images):
    return images[np.lexsort(images.reshape(len(images), -1).T)]


def _value(config, dataset, images):
    (score,) = scores.create(config, dataset)
    score.prepare()
    return score(images)["fid"]


def test_a_reference_folder_takes_the_place_of_the_data(config, digits, folder):
    images, _ = _first(digits)
    far = _value(config, digits, images)
    config.eval.reference = str(folder)
    real = scores.real_images(config, digits)
    np.testing.assert_array_equal(_in_order(real.arrays()["image"]), _in_order(images))
    # The pictures of any size are those that are scored.
    assert far > 1
    assert _value(config, real, images) == pytest.approx(0, abs=1e-9)
    (score,) = scores.create(config, real)
    assert score.identity()["fid"] == {
        "network": score._network.version,
        "data": real.fingerprint,
        "reference": "",
    }
    config.eval.reference = ""
    assert scores.real_images(config, digits) is digits


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("none", "config.eval.reference=.*none does not exist: name a folder of pict"),
        ("empty", "^config.eval.reference: there are no pictures in .*empty"),
    ],
)
def test_a_wrong_reference_is_named(config, digits, tmp_path, named, message):
    (tmp_path / "empty").mkdir()
    config.eval.reference = str(tmp_path / named)
    with pytest.raises(JcmError, match=message):
        scores.create(config, scores.real_images(config, digits))
    config.data.name = "not prepared before the reference is found"
    with pytest.raises(JcmError, match=message if named == "none" else "reference"):
        scores.real_images(config)


def test_samples_are_pictures_or_pixels(config, digits, folder, tmp_path):
    images, labels = _first(digits)
    found = given.samples(config, str(folder), "--samples").arrays()
    np.testing.assert_array_equal(_in_order(found["image"]), _in_order(images))
    assert sorted(found["label"]) == sorted(labels)
    np.savez(tmp_path / "pixels.npz", images)
    np.savez(tmp_path / "labelled.npz", images, labels)
    for name in ("pixels", "labelled"):
        path = str(tmp_path / f"{name}.npz")
        found = given.samples(config, path, "--samples").arrays()
        np.testing.assert_array_equal(found["image"], images)
    np.testing.assert_array_equal(found["label"], labels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"other": np.zeros(3)}, "it has no arr_0: name a folder, or an .npz"),
        ({"arr_0": np.array([None])}, "arr_0 is of type object"),
        ({"arr_0": np.zeros((9, 4, 4, 1), np.uint8)}, "--samples=.*x.npz: data has im"),
        ({"arr_0": np.zeros((9, 8, 8, 1), np.float32)}, "float32, and not uint8"),
        (None, "cannot be read"),
    ],
)
def test_wrong_samples_are_named(config, tmp_path, content, message):
    path = tmp_path / "x.npz"
    if content is None:
        path.write_text("no arrays")
    else:
        np.savez(path, **content)
    with pytest.raises(JcmError, match=message):
        given.samples(config, str(path), "--samples")


def test_too_few_samples_of_others_raise_before_the_long_work(config, digits):
    with pytest.raises(JcmError, match="17 images, but there are 9 samples: make more"):
        scores.create(config, digits, count=9)
    scores.create(config, digits, count=17)
    config.eval.scores = ("classifier",)
    with pytest.raises(JcmError, match="65 images, but there are 64 samples: make mo"):
        scores.create(config, digits, count=64)
