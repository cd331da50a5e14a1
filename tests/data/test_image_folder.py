"""Tests of folders of pictures as data sets."""

import os

import numpy as np
import pytest
from folders import of_folder, picture, save
from PIL import Image

from jcm import data
from jcm.runtime.errors import JcmError


def test_subfolders_are_the_classes(data_config, tmp_path):
    save(tmp_path / "dog" / "deep" / "1.png", seed=1)
    save(tmp_path / "cat" / "2.PNG", seed=2)
    save(tmp_path / "dog" / "0.png", seed=3)
    save(tmp_path / ".hidden" / "0.png")
    save(tmp_path / "cat" / "._2.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "readme.txt").write_text("no picture")
    dataset = data.load(of_folder(data_config, tmp_path))
    assert dataset.class_names == ("cat", "dog")
    arrays = dataset.arrays()
    assert arrays["label"].tolist() == [0, 1, 1]
    for image, seed in zip(arrays["image"], (2, 3, 1), strict=True):
        np.testing.assert_array_equal(image, picture(seed))


def test_a_flat_folder_is_one_class(data_config, tmp_path):
    save(tmp_path / "emoji" / "0.png")
    dataset = data.load(
        of_folder(data_config, tmp_path / "emoji", image_size=4, channels=1)
    )
    assert dataset.class_names == ("emoji",)
    assert dataset.arrays()["image"].shape == (1, 4, 4, 1)


def test_preparation_logs_the_number_of_pictures(data_config, tmp_path, caplog, capsys):
    for i in range(3):
        save(tmp_path / "src" / f"{i}.png")
    with caplog.at_level("INFO", "absl"):
        data.load(of_folder(data_config, tmp_path / "src"))
    assert f"preparing 3 pictures of {tmp_path / 'src'} in " in caplog.text
    printed = capsys.readouterr()
    assert "ataset" not in printed.out + printed.err


def test_pictures_beside_the_classes_are_refused(data_config, tmp_path):
    save(tmp_path / "cat" / "0.png")
    save(tmp_path / "stray.png")
    with pytest.raises(JcmError, match=r"1 pictures outside.*stray\.png"):
        data.load(of_folder(data_config, tmp_path))


def test_broken_pictures_are_counted_and_named(data_config, tmp_path):
    for i in range(4):
        save(tmp_path / f"sound{i}.png", seed=i, size=(64, 64))
    for i in range(5):
        (tmp_path / f"broken{i}.jpg").write_bytes(b"not a picture")
    whole = (tmp_path / "sound0.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(JcmError) as info:
        data.load(of_folder(data_config, tmp_path))
    message = str(info.value)
    assert message.startswith("6 of 10 pictures cannot be read")
    assert "broken0.jpg" in message and "broken4.jpg" not in message
    assert message.endswith("--config.data.skip_broken=True")
    assert "\n" not in message
    dataset = data.load(of_folder(data_config, tmp_path, skip_broken=True))
    assert len(dataset) == 4
    with pytest.raises(JcmError, match="6 of 10"):
        data.load(of_folder(data_config, tmp_path))


def test_a_class_whose_pictures_are_all_broken_is_named(data_config, tmp_path):
    save(tmp_path / "cat" / "0.png")
    save(tmp_path / "dog" / "0.png")
    (tmp_path / "dog" / "1.png").write_bytes(b"")
    config = of_folder(data_config, tmp_path, skip_broken=True)
    assert len(data.load(config)) == 2
    (tmp_path / "dog" / "0.png").write_bytes(b"")
    with pytest.raises(
        JcmError, match=r"class dog can be read .*: replace them, or mo"
    ):
        data.load(config)


def test_ignored_metadata_is_reported_once(data_config, tmp_path, caplog):
    for i in range(5):
        Image.fromarray(picture(i)).save(tmp_path / f"{i}.webp", exif=b"nonsense")
    assert len(data.load(of_folder(data_config, tmp_path))) == 5
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("ignored parts of 5 of 5 pictures (0.webp: damaged")
    assert "2.webp" in message and "3.webp" not in message


@pytest.mark.parametrize("skip_broken", [False, True])
def test_a_folder_of_broken_pictures_raises(data_config, tmp_path, skip_broken):
    (tmp_path / "broken.png").write_bytes(b"")
    with pytest.raises(JcmError, match="1 of 1 pictures cannot be read"):
        data.load(of_folder(data_config, tmp_path, skip_broken=skip_broken))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("", "no pictures in .*png"),
        ("nowhere", "is not a folder: name one that exists"),
    ],
)
def test_empty_and_missing_folders_raise(data_config, tmp_path, name, remedy):
    with pytest.raises(JcmError, match=remedy):
        data.load(of_folder(data_config, tmp_path / name))


def test_a_changed_folder_is_prepared_again(data_config, tmp_path):
    here = of_folder(data_config, tmp_path)
    save(tmp_path / "0.png")
    first = data.load(here)
    save(tmp_path / "1.png", seed=1)
    second = data.load(here)
    assert (len(first), len(second)) == (1, 2)
    same_size = (tmp_path / "0.png").stat().st_size
    Image.fromarray(255 - picture()).save(tmp_path / "0.png")
    assert (tmp_path / "0.png").stat().st_size == same_size
    os.utime(tmp_path / "0.png", ns=(0, 0))
    third = data.load(here)
    assert (third.arrays()["image"][0] == 255 - picture()).all()
    small = data.load(of_folder(data_config, tmp_path, image_size=4))
    sets = (first, second, third, small)
    assert len({dataset.fingerprint for dataset in sets}) == 4


def test_the_fingerprint_depends_on_the_content_and_not_on_the_path(
    data_config, tmp_path
):
    for place in ("here/faces", "there/faces"):
        save(tmp_path / place / "0.png")
    here = data.load(of_folder(data_config, tmp_path / "here/faces"))
    there = data.load(of_folder(data_config, tmp_path / "there/faces"))
    assert here.fingerprint == there.fingerprint


def test_a_builder_config_does_not_flood_the_log(data_config, tmp_path, caplog):
    save(tmp_path / "0.png")
    data.load(of_folder(data_config, tmp_path))
    assert not caplog.records
