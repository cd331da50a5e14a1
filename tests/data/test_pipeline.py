"""Tests of the batches: the order of the stream, and where it starts."""

import contextlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from folders import of_folder, picture, save
from PIL import Image

from jcm import data
from jcm.data import cifar10, image_folder, pipeline


@pytest.fixture
def numbered(data_config, tmp_path):
    """Ten pictures, each with a first pixel that identifies it."""
    for i in range(10):
        pixels = np.zeros((4, 4, 3), np.uint8)
        pixels[:, 0] = i + 1
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return data.load(of_folder(data_config, tmp_path, image_size=4))


def draw(count, dataset, batch_size, **options):
    options = {"seed": 0, "flip": False, "workers": 0, **options}
    iterator = data.batches(dataset, batch_size, **options)
    with contextlib.closing(iterator):
        return [next(iterator) for _ in range(count)]


def assert_joined(shares, whole):
    """Returns the batches of several processes, joined as one process has them."""
    for batch, *parts in zip(whole, *shares, strict=True):
        for key, value in batch.items():
            joined = np.concatenate([part[key] for part in parts])
            np.testing.assert_array_equal(joined, value)


def identity(batch_list):
    return np.concatenate([batch["image"].max((1, 2, 3)) for batch in batch_list])


@pytest.mark.parametrize("batch_size", [5, 4, 10, 25])
def test_every_epoch_shows_every_record_once_in_a_new_order(numbered, batch_size):
    epochs = identity(draw(100 // batch_size, numbered, batch_size)).reshape(10, 10)
    assert (np.sort(epochs) == np.arange(1, 11)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 10


def test_seeds_and_epochs_do_not_share_permutations(numbered):
    by_seed = [identity(draw(4, numbered, 10, seed=seed)) for seed in range(4)]
    epochs = np.stack(by_seed).reshape(16, 10)
    assert len({tuple(epoch) for epoch in epochs}) == 16


@pytest.mark.parametrize("process_count", [2, 4])
def test_the_global_batch_does_not_depend_on_the_processes(numbered, process_count):
    alone = draw(7, numbered, 8, flip=True)
    shares = [
        draw(7, numbered, 8, flip=True, rows=rows)
        for rows in np.split(np.arange(8), process_count)
    ]
    assert_joined(shares, alone)


def test_half_of_the_pictures_are_mirrored_independently(numbered):
    batch_list = draw(40, numbered, 50, flip=True, seed=3)
    flipped = np.stack([batch["image"][:, 0, 3, 0] > 0 for batch in batch_list])
    assert abs(flipped.mean() - 0.5) < 4 * 0.5 / np.sqrt(flipped.size)
    assert len({tuple(row) for row in flipped}) == 40
    plain = draw(40, numbered, 50, flip=False, seed=3)
    np.testing.assert_array_equal(identity(batch_list), identity(plain))
    for batch, original, mirrored in zip(batch_list, plain, flipped, strict=True):
        expected = np.where(
            mirrored[:, None, None, None],
            original["image"][:, :, ::-1],
            original["image"],
        )
        np.testing.assert_array_equal(batch["image"], expected)


def test_batches_are_contiguous_and_writing_to_them_harms_nothing(digit_set):
    first, second = draw(2, digit_set, 1797)
    assert first["image"].flags.c_contiguous and first["image"].dtype == np.uint8
    assert first["label"].dtype == np.int32
    first["image"][:] = 0
    assert second["image"].any() and digit_set.arrays()["image"].any()
    with pytest.raises(ValueError, match="read-only"):
        digit_set.arrays()["image"][:] = 0


def test_the_stream_does_not_depend_on_the_number_of_threads(digit_set):
    slow = draw(20, digit_set, 64, flip=True, workers=0)
    fast = draw(20, digit_set, 64, flip=True, workers=4)
    for a, b in zip(slow, fast, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_stream_that_starts_later_has_the_same_batches(digit_set, workers, processes):
    # This is after the first epoch, so the epoch must be restored too.
    expected = draw(40, digit_set, 100, flip=True, seed=1)[20:]
    parts = [
        draw(
            20,
            digit_set,
            100,
            flip=True,
            seed=1,
            first=20,
            workers=workers,
            rows=rows,
        )
        for rows in np.split(np.arange(100), processes)
    ]
    assert_joined(parts, expected)


def test_a_set_of_one_picture_fills_a_batch(data_config, tmp_path):
    save(tmp_path / "0.png")
    (batch,) = draw(1, data.load(of_folder(data_config, tmp_path)), 32)
    assert (batch["image"] == picture()).all() and len(batch["image"]) == 32


def test_the_stream_starts_at_a_distant_position_at_once(digit_set):
    (batch,) = draw(1, digit_set, 512, flip=True, first=10**9)
    expected = pipeline._records(10**9 * 512 + np.arange(512), 1797, 0)
    np.testing.assert_array_equal(batch["label"], digit_set.arrays()["label"][expected])


def test_no_builder_takes_a_name_in_the_registry_of_tfds():
    assert tfds.builder_cls("cifar10") is not cifar10.Cifar10
    assert image_folder.ImageFolder.name == "image_folder"
