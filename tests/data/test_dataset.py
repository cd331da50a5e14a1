"""Tests of data sets: the digits, preparation, and the errors of all builders."""

import concurrent.futures
import errno
import os
import shutil
import tempfile

import numpy as np
import pytest

from jcm import data
from jcm.data import digits, prepared
from jcm.runtime import cache, locks
from jcm.runtime.errors import JcmError


def test_digits_are_those_of_scikit_learn(digit_set):
    from sklearn import datasets

    source = datasets.load_digits()
    arrays = digit_set.arrays()
    assert arrays["image"].shape == (1797, 8, 8, 1)
    assert arrays["image"].dtype == np.uint8 and arrays["label"].dtype == np.int32
    np.testing.assert_array_equal(arrays["label"], source.target)
    np.testing.assert_allclose(
        arrays["image"][..., 0], source.images * 255 / 16, atol=0.5
    )
    assert digit_set.class_names == tuple("0123456789")


def test_lazily_decoded_records_equal_the_cached_ones(data_config, digit_set):
    data_config.dir = ""
    data_config.cache_mib = 0
    with pytest.MonkeyPatch.context() as patch:
        found = {"data": prepared_root(digit_set)}
        patch.setattr(cache, "folder", lambda kind: found[kind])
        lazy = data.load(data_config)
    chosen = np.array([5, 1796, 5])
    for key, value in lazy.take(chosen).items():
        np.testing.assert_array_equal(value, digit_set.take(chosen)[key])
    np.testing.assert_array_equal(lazy.arrays()["image"], digit_set.arrays()["image"])
    assert lazy.fingerprint == digit_set.fingerprint
    assert "_decoded" not in vars(lazy)


def prepared_root(dataset):
    return dataset._records.folder.parents[1]


def test_each_part_of_a_split_has_its_own_fingerprint(data_config):
    whole, part = data.load(data_config), data.load(data_config, "train[:10]")
    assert len(part) == 10 and part.fingerprint != whole.fingerprint


@pytest.mark.parametrize(
    ("change", "split", "remedy"),
    [
        ({"name": "mnist"}, "train", "use one of digits, cifar10, image_folder"),
        ({"image_size": 32}, "train", "--config.data.image_size=8"),
        ({"channels": 3}, "train", "--config.data.channels=1"),
        ({}, "test", "train"),
        ({"name": "image_folder"}, "train", "--config.data.path=<folder>"),
    ],
)
def test_mistakes_in_the_config_are_errors_of_one_line_with_a_remedy(
    data_config, change, split, remedy
):
    data_config.update(change)
    with pytest.raises(JcmError, match=remedy) as info:
        data.load(data_config, split)
    assert "\n" not in str(info.value)


def test_opening_a_new_data_set_leaves_no_temporary_files(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    assert digits.Digits(data_dir=tmp_path / "data").info.name == "digits"
    assert not list((tmp_path / "temporary").iterdir())


def test_preparing_twice_reads_the_source_once(data_config, monkeypatch):
    first = data.load(data_config)
    monkeypatch.setattr(digits.Digits, "_split_generators", None)
    assert data.load(data_config) == first


def test_interrupted_preparation_leaves_nothing_and_can_be_repeated(
    data_config, monkeypatch
):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 100, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            data.load(data_config)
    assert not [path for path in all_files(data_config.dir) if "1.3.0" in path]
    assert len(data.load(data_config)) == 1797


def interrupt_after(patch, count, error):
    generate = digits.Digits._generate_examples

    def interrupted(self, split, pictures):
        for key, example in generate(self, split, pictures):
            if key == count:
                raise error
            yield key, example

    patch.setattr(digits.Digits, "_generate_examples", interrupted)


def all_files(folder):
    return [
        os.path.join(where, f) for where, _, files in os.walk(folder) for f in files
    ]


def test_a_process_uses_what_another_has_prepared_meanwhile(data_config, monkeypatch):
    generate = digits.Digits._split_generators
    winners = []

    def overtaken(self, dl_manager):
        if not winners:
            winners.append(None)
            winners[0] = data.load(data_config)
        return generate(self, dl_manager)

    monkeypatch.setattr(digits.Digits, "_split_generators", overtaken)
    # The file system does not support locks.
    monkeypatch.setattr(locks.fcntl, "flock", _fails_with(errno.ENOLCK))
    assert data.load(data_config) == winners[0]
    assert not [path for path in all_files(data_config.dir) if "incomplete" in path]


def _fails_with(number):
    def fails(*_):
        raise OSError(number, os.strerror(number))

    return fails


def test_processes_that_start_together_prepare_once(data_config, monkeypatch):
    generate, prepared = digits.Digits._generate_examples, []

    def counted(self, split, pictures):
        prepared.append(split)
        yield from generate(self, split, pictures)

    monkeypatch.setattr(digits.Digits, "_generate_examples", counted)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: data.load(data_config), range(4)))
    assert prepared == ["train"] and found == [found[0]] * 4


def test_a_data_directory_that_cannot_be_written_is_named(data_config):
    blocked = os.path.join(data_config.dir, "file")
    open(blocked, "w").close()
    data_config.dir = blocked
    with pytest.raises(JcmError, match="--config.data.dir"):
        data.load(data_config)


def _edit(path):
    path.write_text(path.read_text().replace("1797", "1000"))


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("dataset_info.json", _edit, "dataset_info.json has another SHA-256"),
        ("dataset_info.json", lambda p: p.write_text("{"), "has 1 bytes, not"),
        ("labels_train.npy", _flip, "labels_train.npy has another SHA-256"),
        ("labels_train.npy", os.remove, "No such file"),
        ("digits-train.array_record-00000-of-00001", _flip, "another SHA-256"),
        ("prepared.json", lambda p: p.write_text('{"files": 3}'), "files"),
        ("prepared.json", os.remove, "there is no"),
    ],
)
def test_a_data_set_that_has_changed_is_refused(
    data_config, digit_set, tmp_path, name, damage, reason
):
    place = digit_set._records.folder
    data_config.dir = str(tmp_path)
    copy = tmp_path / place.relative_to(place.parents[1])
    shutil.copytree(place, copy)
    assert data.load(data_config) == digit_set
    damage(copy / name)
    with pytest.raises(JcmError, match=f"{reason}.*: delete {copy} to prepare") as e:
        data.load(data_config)
    assert "\n" not in str(e.value)


def test_a_damaged_record_is_one_line(data_config, digit_set, tmp_path, monkeypatch):
    place = digit_set._records.folder
    data_config.dir, data_config.cache_mib = str(tmp_path), 0
    copy = tmp_path / place.relative_to(place.parents[1])
    shutil.copytree(place, copy)
    (path,) = copy.glob("*.array_record*")
    content = path.read_bytes()
    path.write_bytes(content[:100_000] + bytes(100) + content[100_100:])
    monkeypatch.setattr(prepared, "_HASHED", 0)  # as if it were large
    damaged = data.load(data_config)
    with pytest.raises(JcmError, match=f"record .* in {copy} .*: delete .* again") as e:
        damaged.arrays()
    assert "\n" not in str(e.value)
