"""Tests of the parts of a split."""

import numpy as np
import pytest
from folders import of_folder, save

from jcm import data
from jcm.data import parts
from jcm.runtime.errors import JcmError


@pytest.fixture
def pets(data_config, tmp_path):
    """The config of a folder of ten cats and ten dogs."""
    for i in range(20):
        save(tmp_path / "pets" / ("cat" if i < 10 else "dog") / f"{i:02d}.png", seed=i)
    return of_folder(data_config, tmp_path / "pets")


def test_a_part_of_a_folder_has_its_share_of_every_class(pets):
    for split in ("train[:50%]", "train[50%:]", "train[5:15]"):
        labels = data.load(pets, split).arrays()["label"]
        assert np.bincount(labels).tolist() == [5, 5]
    few = data.load(pets, "train[:20%]").arrays()["label"]
    assert np.bincount(few).tolist() == [2, 2]


def test_parts_make_up_the_whole(pets):
    whole = data.load(pets).arrays()["image"]
    both = [data.load(pets, split).arrays()["image"] for split in HALVES]
    assert sorted(row.tobytes() for row in np.concatenate(both)) == sorted(
        row.tobytes() for row in whole
    )
    joined = data.load(pets, "+".join(HALVES))
    np.testing.assert_array_equal(joined.arrays()["image"], np.concatenate(both))
    assert len({data.load(pets, split).fingerprint for split in HALVES}) == 2


HALVES = ("train[:50%]", "train[50%:]")


def test_the_whole_keeps_its_order(pets):
    for split in ("train", "train[:100%]", "train[:20]"):
        labels = data.load(pets, split).arrays()["label"]
        assert labels.tolist() == [0] * 10 + [1] * 10


def test_other_data_sets_are_cut_in_their_published_order(data_config, digit_set):
    part = data.load(data_config, "train[:10]")
    np.testing.assert_array_equal(
        part.arrays()["image"], digit_set.arrays()["image"][:10]
    )
    assert part.summary().startswith("10 pictures in 10 classes (0: 1, 1: 1,")


def test_records_that_are_used_twice_are_reported(pets, data_config, caplog):
    assert len(data.load(pets, "train[:60%]+train[40%:]")) == 24
    assert "config.data.split='train[:60%]+train[40%:]' overlap: 4 ima" in caplog.text
    assert len(data.load(data_config, "train[:9]+train[1:2]+train[5:]")) == 1802
    assert "overlap: 5 images are used again" in caplog.text
    caplog.clear()
    data.load(pets, "+".join(HALVES))
    assert not caplog.records


@pytest.mark.parametrize("split", ["train[:1%]", "train[5:5]", "train[9:4]"])
def test_a_part_without_pictures_is_an_error(pets, data_config, split):
    with pytest.raises(JcmError, match=r"has 0 pictures of 20: take a larger part"):
        data.load(pets, split)
    if "%" not in split:
        with pytest.raises(JcmError, match="has 0 pictures of 1797"):
            data.load(data_config, split)


@pytest.mark.parametrize("split", ["test", "all[:5%]", "train[:200%]", "train[:21]"])
def test_a_part_that_does_not_exist_is_an_error(pets, split):
    with pytest.raises(JcmError, match="set config.data.split to another one"):
        data.load(pets, split)


def test_each_piece_of_the_mixed_order_has_its_share():
    labels = np.repeat(np.arange(3), (100, 10, 50)).astype(np.int32)
    order = parts.mixed(labels)
    np.testing.assert_array_equal(np.sort(order), np.arange(160))
    np.testing.assert_array_equal(order, parts.mixed(labels))
    for start in range(0, 160, 16):
        counts = np.bincount(labels[order[start : start + 16]], minlength=3)
        np.testing.assert_allclose(counts, (10, 1, 5), atol=1)
    cats = order[labels[order] == 0]
    assert (np.diff(cats) < 0).any()
