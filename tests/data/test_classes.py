"""Tests of which classes the pictures of a folder have."""

import json
import os
import zipfile

import cost
import numpy as np
import pytest
from folders import of_folder, save

from jcm import data
from jcm.data import classes, image_folder
from jcm.runtime import budget
from jcm.runtime.errors import JcmError


def test_classes_that_are_named_by_numbers_are_in_their_order(data_config, tmp_path):
    for number in range(12):
        save(tmp_path / str(number) / "0.png", seed=number)
    dataset = data.load(of_folder(data_config, tmp_path))
    assert dataset.class_names == tuple(map(str, range(12)))
    assert dataset.arrays()["label"].tolist() == [0, 1, 10, 11, *range(2, 10)]


def test_the_order_of_names():
    assert classes.in_order({"10", "2", "1"}) == ("1", "2", "10")
    assert classes.in_order({"10", "2", "b"}) == ("10", "2", "b")
    assert classes.in_order({"010", "-1", "2"}) == ("-1", "2", "010")


NUMBERS = [0, 1, 2, 0, 1, 2]


def of_nvlabs(folder, labels=NUMBERS):
    """Writes a data set as the tools of NVlabs do."""
    names = [f"{i // 4:05d}/img{i:08d}.png" for i in range(6)]
    for i, name in enumerate(names):
        save(folder / name, seed=i)
    names.append(names[0])
    pairs = labels and [
        [name, label] for name, label in zip(names, labels, strict=False)
    ]
    (folder / classes.LISTED).write_text(json.dumps({"labels": pairs}))
    return folder


def zipped(folder):
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for path in folder.rglob("*.*"):
            archive.write(path, path.relative_to(folder))
        archive.writestr("__MACOSX/._img.png", b"")
    return folder.with_suffix(".zip")


@pytest.mark.parametrize("packed", [False, True])
def test_data_sets_of_nvlabs_have_the_listed_classes(
    data_config, tmp_path, packed, caplog
):
    place = of_nvlabs(tmp_path / "set")
    place = zipped(place) if packed else place
    dataset = data.load(of_folder(data_config, place))
    assert dataset.class_names == ("0", "1", "2")
    assert dataset.arrays()["label"].tolist() == NUMBERS
    assert not caplog.records


def test_a_zip_file_has_the_pictures_of_its_folder(data_config, tmp_path):
    folder = of_nvlabs(tmp_path / "set")
    both = (folder, zipped(folder))
    first, second = (data.load(of_folder(data_config, each)) for each in both)
    assert first == second


@pytest.mark.parametrize("listed", [True, False])
def test_a_data_set_of_nvlabs_without_labels_has_one_class(
    data_config, tmp_path, listed
):
    folder = of_nvlabs(tmp_path / "set", labels=None)
    if not listed:
        (folder / classes.LISTED).unlink()
    assert data.load(of_folder(data_config, folder)).class_names == ("set",)


@pytest.mark.parametrize(
    ("labels", "remedy"),
    [
        (
            [0, 1, 2, 0, 1],
            "no label for 1 pictures, such as 00001/img00000005.png: add",
        ),
        ([[0.5, 1]] * 6, 'set "labels" to null'),
        ([-1] * 6, 'set "labels" to null'),
        ([True] * 6, 'set "labels" to null'),
        ([10**9] * 6, 'set "labels" to null'),
        ([0, 1, 2, 0, 1, 2, 1], "lists 00000/img00000000.png with several labels"),
    ],
)
def test_a_wrong_list_of_classes_is_an_error(data_config, tmp_path, labels, remedy):
    with pytest.raises(JcmError, match=remedy):
        data.load(of_folder(data_config, of_nvlabs(tmp_path / "set", labels)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"labels": [', r"dataset\.json is damaged .*: replace it"),
        ("[" * 10**5, r"dataset\.json is damaged .*: replace it"),
        ('{"labels": 5}', r"labels: Expected `array | null`, got `int`"),
        ('{"labels": {"a.png": 0}}', r"labels: Expected `array | null`, got `object`"),
        (
            '{"labels": [["a.png", null]]}',
            r"labels\[0\]\[1\]: Expected `int`, got `nul",
        ),
        (f'{{"labels": [["a.png", {"9" * 5000}]]}}', r"labels\[0\]\[1\]: .*range"),
        (
            '{"labels": [["a.png", 100000]]}',
            r"labels\[0\]\[1\]: Expected `int` <= 99999",
        ),
        ('{"labels": [[5, 0]]}', r"labels\[0\]\[0\]: Expected `str`, got `int`"),
    ],
)
def test_a_damaged_list_of_classes_is_an_error(data_config, tmp_path, content, message):
    folder = of_nvlabs(tmp_path / "set")
    (folder / classes.LISTED).write_text(content)
    for place in (folder, zipped(folder)):
        with pytest.raises(JcmError, match=message):
            data.load(of_folder(data_config, place))


def test_a_list_of_classes_is_a_file_of_a_fair_size(data_config, tmp_path):
    folder = of_nvlabs(tmp_path / "set")
    path = folder / classes.LISTED
    path.write_bytes(b" " * (classes.most_bytes(10) + 1))
    for place in (folder, zipped(folder)):
        with pytest.raises(JcmError, match=r"dataset\.json has [0-9,]+ bytes"):
            data.load(of_folder(data_config, place))
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(JcmError, match=r"dataset\.json is not a regular file"):
        data.load(of_folder(data_config, folder))


@pytest.mark.parametrize("part", [b"[],", b'["a",999],'])
def test_a_hostile_list_of_classes_takes_little_memory(tmp_path, part):
    count = (classes.most_bytes(1000) - 100) // len(part)
    start = b"" if part == b"[]," else b'{"labels":'
    (tmp_path / classes.LISTED).write_bytes(start + b"[" + part * count)
    with cost.limited(tmp_path), pytest.raises(JcmError, match=r"json is damaged"):
        content = classes.read_list(tmp_path, 1000)
        classes.of_list(tmp_path, content, ["a"])


def test_the_directory_of_a_zip_file_is_a_small_part_of_it(
    data_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(budget, "DIRECTORY_BYTES", 500)
    place = zipped(of_nvlabs(tmp_path / "set"))
    images = data.load(of_folder(data_config, place)).arrays()["image"]
    assert len(images) == 6  # its directory has 546 bytes, and a twentieth of it 137
    with zipfile.ZipFile(place, "a") as archive:
        for i in range(20):
            archive.writestr(f"empty/{i:0100d}.png", b"")
    with pytest.raises(JcmError, match=r"its directory has more than .*: unpack it"):
        data.load(of_folder(data_config, place))


@pytest.mark.parametrize("text", ['{"name": "pets"}', '[["cat/0.png", 0]]'])
def test_another_file_of_this_name_is_reported(data_config, tmp_path, text, caplog):
    save(tmp_path / "cat" / "0.png")
    (tmp_path / classes.LISTED).write_text(text)
    assert data.load(of_folder(data_config, tmp_path)).class_names == ("cat",)
    assert 'dataset.json has no "labels", and is not used' in caplog.text


def test_each_name_in_a_zip_file_is_one_picture(data_config, tmp_path, caplog):
    place = zipped(of_nvlabs(tmp_path / "set"))
    name = "00000/img00000000.png"
    with zipfile.ZipFile(place, "a") as archive, pytest.warns(match="Duplicate name"):
        archive.write(tmp_path / "set" / "00000" / "img00000001.png", name)
        archive.writestr("notes.txt", "nothing")
    images = data.load(of_folder(data_config, place)).arrays()["image"]
    assert len(images) == 6
    np.testing.assert_array_equal(images[0], images[1])  # the last file of the name
    assert f"{place}: skipped 1 .txt" in caplog.text


def test_large_files_of_a_zip_file_are_not_unpacked(data_config, tmp_path, monkeypatch):
    place = zipped(of_nvlabs(tmp_path / "set"))
    with zipfile.ZipFile(place) as archive:
        listed = archive.getinfo(classes.LISTED).file_size
    monkeypatch.setattr(image_folder, "_LARGEST_MEMBER", listed - 1)
    message = f"dataset.json has {listed} bytes, more than {listed - 1}.: unpack it"
    with pytest.raises(JcmError, match=message):
        data.load(of_folder(data_config, place))


def test_a_file_of_a_zip_file_must_have_a_name(data_config, tmp_path):
    place = zipped(of_nvlabs(tmp_path / "set"))
    with zipfile.ZipFile(place, "a") as archive:
        archive.writestr(zipfile.ZipInfo("x"), b"")
        archive.filelist[-1].filename = ""
    with pytest.raises(JcmError, match=r"a member has no name.: unpack it"):
        data.load(of_folder(data_config, place))


def test_a_link_to_itself_is_no_data_set(data_config, tmp_path):
    place = tmp_path / "set.zip"
    place.symlink_to(place)
    with pytest.raises(JcmError, match="set.zip is not a folder: name one that exists"):
        data.load(of_folder(data_config, place))


def test_an_encrypted_zip_file_is_refused(data_config, tmp_path):
    place = zipped(of_nvlabs(tmp_path / "set"))
    content = place.read_bytes()
    for start, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        head, *files = content.split(start)
        marked = [bytes([*each[: flags - 4], 1, *each[flags - 3 :]]) for each in files]
        content = start.join([head, *marked])
    place.write_bytes(content)
    with pytest.raises(JcmError, match="encrypted.*: unpack it and pass the folder"):
        data.load(of_folder(data_config, place))


def test_a_zip_file_without_a_list_of_classes_is_refused(data_config, tmp_path):
    save(tmp_path / "set" / "cat" / "0.png")
    with pytest.raises(JcmError, match="unpack it and pass the folder"):
        data.load(of_folder(data_config, zipped(tmp_path / "set")))


def test_folders_that_are_splits_are_refused(data_config, tmp_path):
    for split in ("train", "val"):
        save(tmp_path / split / "cat" / "0.png")
    remedy = rf"\(train, val\) .* not classes: pass .*path={tmp_path}/train"
    with pytest.raises(JcmError, match=remedy):
        data.load(of_folder(data_config, tmp_path))
    save(tmp_path / "bus" / "0.png")
    dataset = data.load(of_folder(data_config, tmp_path))
    assert dataset.class_names == ("bus", "train", "val")
    for split in ("Val_2017", "train2017", "test-2"):
        save(tmp_path / "coco" / split / "0.png")
    with pytest.raises(JcmError, match=rf"pass .*path={tmp_path}/coco/train2017"):
        data.load(of_folder(data_config, tmp_path / "coco"))


def test_one_folder_of_folders_is_reported(data_config, tmp_path, caplog):
    for name in ("cat", "dog"):
        save(tmp_path / "archive" / name / "0.png")
    data.load(of_folder(data_config, tmp_path))
    assert (
        f"(cat, dog) are the classes, pass --config.data.path={tmp_path}/archive"
        in (caplog.text)
    )


def test_names_are_in_the_composed_form_of_unicode(data_config, tmp_path):
    save(tmp_path / "cafe\u0301" / "0.png")
    dataset = data.load(of_folder(data_config, tmp_path))
    assert dataset.class_names == ("caf\u00e9",)
    save(tmp_path / "caf\u00e9" / "0.png")
    with pytest.raises(JcmError, match="several folders that are named 'caf\u00e9'"):
        data.load(of_folder(data_config, tmp_path))


def test_names_that_are_not_utf8_are_read(data_config, tmp_path):
    root = tmp_path / os.fsdecode(b"root\xff")
    save(root / os.fsdecode(b"caf\xe9") / os.fsdecode(b"\xe8.png"))
    save(root / "dog" / "0.png")
    dataset = data.load(of_folder(data_config, root))
    assert dataset.class_names == ("caf\\xe9", "dog")
    assert len(dataset) == 2


def test_a_summary_gives_the_pictures_in_each_class(data_config, tmp_path, digit_set):
    for i in range(3):
        save(tmp_path / ("dog" if i else "cat") / f"{i}.png", seed=i)
    dataset = data.load(of_folder(data_config, tmp_path))
    assert dataset.summary() == "3 pictures in 2 classes (cat: 1, dog: 2)"
    folder = of_nvlabs(tmp_path / "set", [1, 2, 3, 1, 2, 3])
    from_1 = data.load(of_folder(data_config, folder))
    assert from_1.summary().endswith("(0: 0, 1: 2, 2: 2, 3: 2); 1 class without any")
    save(tmp_path / "one" / "0.png")
    alone = data.load(of_folder(data_config, tmp_path / "one"))
    assert alone.summary() == "1 picture in one class, one"
    assert digit_set.summary().startswith("1,797 pictures in 10 classes (0: 178, 1: ")


def test_a_summary_of_many_classes_gives_the_extremes(data_config, tmp_path):
    folder = of_nvlabs(tmp_path / "set", [0, 0, 0, 5, 5, 99])
    dataset = data.load(of_folder(data_config, folder))
    assert dataset.summary() == (
        "6 pictures in 100 classes, from 0 (class 1) to 3 (class 0) in each; 97 classes"
        " without any"
    )
