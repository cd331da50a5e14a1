"""Tests of what is found in a folder, and what is skipped."""

import os

import pytest
from folders import picture, save, with_package
from PIL import Image

from jcm.data import folders
from jcm.runtime.errors import JcmError


def test_links_that_lead_upward_are_not_followed(tmp_path):
    root = tmp_path / "root"
    for i in range(6):
        save(root / ("cat" if i < 3 else "dog") / f"{i}.png", seed=i)
    (root / "cat" / "me").symlink_to("../cat")
    (root / "dog" / "all").symlink_to(tmp_path)
    save(tmp_path / "outside.png")
    found = folders.scan(root)
    assert found.pictures == [f"cat/{i}.png" for i in range(3)] + [
        f"dog/{i}.png" for i in range(3, 6)
    ]
    assert sorted(found.upward) == ["cat/me", "dog/all"]


def test_no_file_is_found_by_two_paths(tmp_path):
    root = tmp_path / "root"
    save(root / "b" / "1.png")
    save(tmp_path / "store" / "2.png")
    (root / "a").symlink_to("b")
    (root / "b" / "again.png").symlink_to("1.png")
    for name in ("x.png", "y.png"):
        (root / "b" / name).symlink_to(tmp_path / "store" / "2.png")
    (root / "c").symlink_to(tmp_path / "store")
    found = folders.scan(root)
    assert len(found.pictures) == 2
    assert found.pictures[0] == "b/1.png"
    assert found.repeated == 4


def test_a_linked_folder_is_read(tmp_path):
    save(tmp_path / "store" / "deep" / "0.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "cat").symlink_to(tmp_path / "store")
    assert folders.scan(tmp_path / "root").pictures == ["cat/deep/0.png"]


def test_all_formats_of_pillow_are_found_and_the_rest_is_reported(
    tmp_path, caplog, monkeypatch, request
):
    with_package(monkeypatch, request, None)
    image = Image.fromarray(picture())
    names = "a.JPG a.jpe a.jfif a.tif a.tiff a.ppm a.tga a.webp a.avif a.bmp".split()
    for name in names:
        image.save(tmp_path / name)
    image.save(tmp_path / "bare", format="png")
    for name in ("1.txt", "2.txt", "phone.heic", "no_picture", "a.eps"):
        (tmp_path / name).write_bytes(b"nothing")
    (tmp_path / "Thumbs.db").write_bytes(b"nothing")
    found = folders.scan(tmp_path)
    assert set(found.pictures) == {*names, "bare"}
    found.report(tmp_path)
    (record,) = caplog.records
    message = record.getMessage()
    for part in ("2 .txt", "1 .heic", "1 .eps", "1 without a suffix"):
        assert part in message
    assert message.endswith("pip install pillow-heif") and "\n" not in message


def test_folders_that_programs_leave_behind_hold_no_pictures(tmp_path, caplog):
    save(tmp_path / "cat" / "0.png")
    for name in ("@eaDir", "__MACOSX", ".thumbnails", ".ipynb_checkpoints"):
        save(tmp_path / name / "0.png")
        save(tmp_path / "cat" / name / "0.png")
    found = folders.scan(tmp_path)
    assert found.pictures == ["cat/0.png"] and found.folders == ["cat"]
    found.report(tmp_path)
    assert not caplog.records


def test_folders_without_pictures_are_reported(tmp_path, caplog):
    save(tmp_path / "cat" / "0.png")
    (tmp_path / "dog").mkdir()
    folders.scan(tmp_path).report(tmp_path)
    assert "the folder dog, which has no pictures" in caplog.text
    folders.scan(tmp_path).report(tmp_path)  # as a command does for its evaluation
    assert len(caplog.records) == 1


def test_the_folders_below_can_be_left_out(tmp_path, caplog):
    save(tmp_path / "b.png")
    save(tmp_path / "a.png")
    save(tmp_path / "cat" / "0.png")
    (tmp_path / "dog").symlink_to("cat")
    found = folders.scan(tmp_path, below=False)
    assert found.pictures == ["a.png", "b.png"]
    found.report(tmp_path)
    assert caplog.text.endswith("skipped 2 folders\n")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    save(tmp_path / "cat" / "0.png")
    scandir = os.scandir

    def denied(folder):
        if str(folder).endswith("cat"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(JcmError, match=r"cat \(Permission denied\): make it readable"):
        folders.scan(tmp_path)
