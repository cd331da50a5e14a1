"""Tests of arrays and sources that a program passes as data."""

import grain
import jaxtyping
import numpy as np
import pytest

from jcm import data
from jcm.data import given
from jcm.runtime.errors import JcmError

_RNG = np.random.default_rng(0)
_IMAGES = _RNG.integers(0, 256, (250, 8, 8, 1), np.uint8)
_LABELS = _RNG.integers(0, 3, 250)


class Source:
    """Records as a slow source has them."""

    def __init__(self, record, count=250):
        self._record, self._count, self.reads = record, count, 0

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        self.reads += 1
        return self._record(index)


_RECORDS = (
    lambda i: (_IMAGES[i], _LABELS[i]),
    lambda i: {"image": _IMAGES[i], "label": int(_LABELS[i]), "more": 1},
    lambda i: [_IMAGES[i], np.uint8(_LABELS[i])],
)


def _load(value, class_names=(), size=8, channels=1):
    return given.load(value, size, channels, class_names)


def test_arrays_and_sources_give_the_same_batches():
    arrays = _load((_IMAGES, _LABELS))
    assert (len(arrays), arrays.class_names) == (250, ("0", "1", "2"))
    assert np.shares_memory(arrays.arrays()["image"], _IMAGES)
    with pytest.raises(ValueError, match="read-only"):
        arrays.arrays()["image"][0] = 0
    assert _IMAGES.flags.writeable
    mapped = grain.MapDataset.source(range(250)).map(_RECORDS[1])
    for source in (*map(Source, _RECORDS), list(map(_RECORDS[0], range(250))), mapped):
        found = _load(source)
        assert (len(found), found.class_names) == (250, ("0", "1", "2"))
        options = {"seed": 3, "flip": True, "first": 2}
        batch = next(data.batches(found, 300, **options))
        for key, value in next(data.batches(arrays, 300, **options)).items():
            np.testing.assert_array_equal(batch[key], value)
            np.testing.assert_array_equal(found.arrays()[key], arrays.arrays()[key])


def test_images_alone_have_one_class():
    for value in (_IMAGES, {"image": _IMAGES}, list(_IMAGES)):
        found = _load(value)
        assert len(found.class_names) == 1
        np.testing.assert_array_equal(found.arrays()["image"], _IMAGES)
        assert not found.arrays()["label"].any()


def test_the_fingerprint_changes_with_the_content():
    one_pixel = _IMAGES.copy()
    one_pixel[100, 3, 3] ^= 1
    one_label = np.where(np.arange(250) == 100, (_LABELS + 1) % 3, _LABELS)
    values = [
        (_IMAGES, _LABELS),
        (one_pixel, _LABELS),
        (_IMAGES, one_label),
        (_IMAGES[::-1], _LABELS),
        (_IMAGES[:249], _LABELS[:249]),
        _IMAGES,
    ]
    found = [_load(value).fingerprint for value in values]
    assert len(set(found)) == len(found)
    assert _load((_IMAGES.copy(), list(_LABELS))).fingerprint == found[0]
    assert _load((_IMAGES, _LABELS), ("a", "b", "c")).fingerprint not in found


def test_a_source_is_read_only_where_it_must():
    source = Source(_RECORDS[0])
    found = _load(source, class_names=("a", "b", "c"))
    assert found.class_names == ("a", "b", "c") and source.reads < 110
    other = Source(lambda i: (_IMAGES[i] ^ (i == 249), _LABELS[i]))
    assert _load(other, ("a", "b", "c")).fingerprint != found.fingerprint
    assert _load(Source(_RECORDS[1]), "abc").fingerprint == found.fingerprint


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (_IMAGES / 255, r"float64 from 0 to 1, which np.uint8\(np.round.*: pass uint8"),
        (_IMAGES / 127.5 - 1, r"from -1 to 1, which jcm.to_uint8\(images\) converts: "),
        (_IMAGES * 1.0, "data is float64 from 0 to 255: pass uint8 from 0 to 255"),
        (_IMAGES.astype(int), "data is int64 from 0 to 255: pass uint8"),
        (_IMAGES > 9, "data is bool: pass uint8"),
        (_IMAGES[..., 0], r"\(250, 8, 8\): pass \(n, h, w, c\); images\[..., None\]"),
        (_IMAGES[0], r"\(8, 8, 1\): pass \(n, h, w, c\); images\[..., None\]"),
        (
            _IMAGES.transpose(0, 3, 1, 2),
            r"come last, as in np.moveaxis\(images, 1, 3\)",
        ),
        (_IMAGES[:, :4], "of 8x4 with 1 channels: pass square ones"),
        (_IMAGES.repeat(2, 3), "of 8x8 with 2 channels: pass square ones"),
        (
            _IMAGES.repeat(2, 1).repeat(2, 2),
            "16x16 with 1 channels, and the config 8x8 with 1: set"
            " config.data.image_size=16 and config.data.channels=1",
        ),
        (
            _IMAGES.repeat(3, 3),
            "set config.data.image_size=8 and config.data.channels=3",
        ),
        (_IMAGES[:0], "data has no images: pass at least one"),
        ([], "data has no images: pass at least one"),
        ((_IMAGES, _LABELS[:5]), r"have shape \(5,\) for 250 images: pass the number"),
        ((_IMAGES, np.eye(3)[_LABELS]), r"have shape \(250, 3\) for 250 images"),
        ((_IMAGES, _LABELS / 2), "labels of data are float64: pass whole numbers"),
        ((_IMAGES, _LABELS - 1), "label -1 of data must be at least 0"),
        ((_IMAGES, _LABELS + 10**6), "labels up to 1000002: number the classes"),
        ((_IMAGES, _LABELS + 2**32), "labels up to 4294967298: number the classes"),
        (Source(lambda i: (_IMAGES[i], 2**32)), "labels up to 4294967296: number the"),
        (3, "data is of type int: pass a folder, images"),
        (iter(_IMAGES), "data is of type iterator: pass a folder"),
        (Source(lambda i: {"picture": 1}), "record 0 of data has picture and no image"),
        (Source(lambda i: (1, 2, 3)), "record 0 of data has 3 parts: pass"),
        (Source(lambda i: _IMAGES[i] / 255), "record 0 of data is float64 from "),
        (Source(lambda i: (_IMAGES[i], 0.5)), "labels of data are float64"),
        (
            Source(lambda i: _IMAGES[i, : 8 - (i == 7), : 8 - (i == 7)]),
            "images of 7x7 with 1 channels",
        ),
    ],
)
def test_wrong_data_is_refused_with_the_remedy(monkeypatch, value, message):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(JcmError, match=message):
        _load(value)


def test_a_label_without_a_name_is_refused():
    for value in ((_IMAGES, _LABELS), Source(_RECORDS[0])):
        with pytest.raises(
            JcmError, match="label 2 of data has no name: class_names h"
        ):
            _load(value, ("a", "b")).arrays()
