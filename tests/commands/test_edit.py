"""Tests of editing picture files with the command."""

import argparse
import dataclasses
import pathlib
import re

import folders
import numpy as np
import pytest
from PIL import Image

import jcm
from jcm import data
from jcm.commands import edit as edit_lib
from jcm.commands.benchmark import editing
from jcm.commands.edit import Request, edit
from jcm.data.images import to_float
from jcm.metrics.classifier import Classifier
from jcm.model.loading import load
from jcm.runtime import logs
from jcm.runtime.errors import JcmError

_DATA = pathlib.Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of pictures, one of them large and in colour, and a mask."""
    folder = tmp_path_factory.mktemp("pictures")
    folders.save(folder / "in" / "a.png", 0, (30, 20))
    image = Image.fromarray(folders.picture(1, channels=1)[..., 0])
    image.save(folder / "in" / "b.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 2:6] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return folder


def _pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_folder_is_edited_file_by_file(student, files, tmp_path):
    config, workdir = student
    request = Request(
        task="inpaint",
        input=str(files / "in"),
        mask=str(files / "mask.png"),
        output=str(tmp_path / "out"),
        sigmas=(80.0, 1.0),
        variants=2,
    )
    edit(config, workdir, request)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a_0.png", "a_1.png", "b_0.png", "b_1.png", "before_after.png"]
    before, after = _pixels(files / "in" / "b.png"), _pixels(tmp_path / "out/b_0.png")
    hole = _pixels(files / "mask.png") > 0
    np.testing.assert_array_equal(after[..., 0][~hole], before[~hole])
    assert (after[..., 0][hole] != before[hole]).any()
    assert (after != _pixels(tmp_path / "out" / "b_1.png")).any()
    # The summary has a row for each picture: it, what is replaced, and all results.
    summary, scale = _pixels(tmp_path / "out" / "before_after.png"), 12
    red = (summary == edit_lib._PAINT).all(axis=2)
    assert red.sum() == 2 * hole.sum() * scale**2
    assert summary.shape[1] > 4 * 8 * scale
    after = _pixels(tmp_path / "out" / "b_1.png").repeat(scale, 0).repeat(scale, 1)
    height, width = after.shape[:2]
    bottom, right = summary.shape[0] - 12 - 1, summary.shape[1] - 12 - 1
    assert summary.shape[0] < 12 + 40 + 2 * (height + 1) + 12  # one line of caption
    shown = summary[bottom - height : bottom, right - width : right]
    np.testing.assert_array_equal(shown, np.broadcast_to(after, shown.shape))
    with pytest.raises(JcmError, match="out exists already: name a new folder"):
        edit(config, workdir, request)


@pytest.mark.parametrize(
    ("task", "options", "count"),
    [
        ("super_resolve", {"sigmas": (80.0, 1.0)}, 2),
        ("outpaint", {"sigmas": (80.0, 1.0)}, 2),
        ("stroke_to_image", {}, 2),
        ("variations", {"variants": 3}, 6),
        ("denoise", {}, 2),
    ],
)
def test_each_task_writes_its_results(student, files, tmp_path, task, options, count):
    config, workdir = student
    place = tmp_path / "out"
    edit(config, workdir, Request(task, str(files / "in"), str(place), **options))
    assert len(list(place.iterdir())) == count + 1
    assert _pixels(place / "before_after.png").shape[2] == 3


def test_results_do_not_depend_on_the_batch_size(student, tmp_path):
    config, workdir = student
    for i in range(5):
        folders.save(tmp_path / "in" / f"{i}.png", i, (8, 8))
    (tmp_path / "in" / "4.png").rename(tmp_path / "in" / "before_after.png")
    results = []
    for batch_size in (16, 4):
        config = config.copy_and_resolve_references()
        config.sample.batch_size = batch_size
        place = tmp_path / f"by_{batch_size}"
        request = Request("variations", str(tmp_path / "in"), str(place), variants=2)
        edit(config, workdir, request)
        assert len(list(place.iterdir())) == 5 * 2 + 1
        results.append([_pixels(path) for path in sorted(place.glob("*.png_?.png"))])
    for a, b in zip(*results, strict=True):
        assert np.abs(a.astype(int) - b).max() <= 1
    assert len(results[0]) == 10


def test_denoising_takes_a_known_noise_level(student, files, tmp_path):
    config, workdir = student
    made = []
    for sigmas in ((), (0.5,), (3.0,)):
        place = tmp_path / f"out{len(made)}"
        edit(
            config,
            workdir,
            Request("denoise", str(files / "in"), str(place), sigmas=sigmas),
        )
        made.append(_pixels(place / "b.png").astype(int))
    assert np.abs(made[1] - made[2]).max() > 10


def test_interpolation_needs_no_input(student, tmp_path):
    config, workdir = student
    config = config.copy_and_resolve_references()
    config.sample.num_images = 4
    edit(config, workdir, Request("interpolate", "", str(tmp_path / "out")))
    assert len(list((tmp_path / "out").iterdir())) == 4 + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "paint"}, "--task='paint' is unknown: use one of inpaint"),
        ({"output": ""}, "name a folder for the results: --output"),
        ({"variants": 0}, "--variants=0 must be at least 1"),
        ({"input": ""}, "name a picture or a folder of pictures: --input"),
        ({"input": "none.png"}, "there is no none.png: name a picture"),
        ({"mask": "none.png"}, "there is no none.png: name a picture"),
        ({"task": "colorize", "mask": ""}, "the model makes grey images: use a model"),
        ({"input": "EMPTY"}, "no pictures in .*: name another folder"),
        ({"mask": ""}, "inpainting needs a mask: --mask=mask.png"),
        (
            {"task": "super_resolve", "mask": "", "factor": 3},
            "--factor=3 must be at least 2",
        ),
        (
            {"task": "outpaint", "mask": "", "factor": 1},
            "--factor=1 must be at least 2",
        ),
        (
            {"mask": "WIDE"},
            "wide.png of 16x8 has another aspect ratio than .*a.png of 30x20: use",
        ),
        (
            {"mask": "CLEAR"},
            "clear.png has transparency: use black to keep pixels and white to",
        ),
        (
            {"task": "variations"},
            "--task=variations does not use --mask: drop it",
        ),
        (
            {"task": "denoise", "mask": "", "variants": 2},
            "denoise does not use --varia",
        ),
        (
            {"task": "denoise", "mask": "", "sigmas": (1.0, 0.5)},
            "--task=denoise takes one noise level, such as --sigmas=0.5",
        ),
    ],
)
def test_impossible_requests_raise_before_the_model_is_loaded(
    student, files, tmp_path, monkeypatch, changes, message
):
    config, workdir = student
    monkeypatch.setattr(edit_lib.loading, "from_config", _refuse)
    (tmp_path / "empty").mkdir()
    fields = {
        "task": "inpaint",
        "input": str(files / "in"),
        "mask": str(files / "mask.png"),
        "output": str(tmp_path / "out"),
        **changes,
    }
    if fields["input"] == "EMPTY":
        fields["input"] = str(tmp_path / "empty")
    if fields["mask"] == "WIDE":
        fields["mask"] = str(tmp_path / "wide.png")
        Image.new("L", (16, 8), 255).save(fields["mask"])
    if fields["mask"] == "CLEAR":
        fields["mask"] = str(tmp_path / "clear.png")
        Image.new("RGBA", (8, 8)).save(fields["mask"])
    with pytest.raises(JcmError, match=message):
        edit(config, workdir, Request(**fields))
    assert not (tmp_path / "out").exists()


def _refuse(*_):
    raise AssertionError("the model is loaded")


def test_noise_levels_must_descend(student, files, tmp_path):
    request = Request("variations", str(files / "in"), str(tmp_path / "out"))
    with pytest.raises(JcmError, match="must descend"):
        edit(*student, dataclasses.replace(request, sigmas=(1.0, 80.0)))
    assert not (tmp_path / "out").exists()


def test_a_mask_fits_the_picture_as_it_is_seen(student, tmp_path):
    config, workdir = student
    photo, mask = _DATA / "rotated_photo.png", _DATA / "mask_as_seen.png"
    request = Request(
        "inpaint", str(photo), str(tmp_path / "out"), str(mask), sigmas=(80.0,)
    )
    edit(config, workdir, request)
    made = _pixels(tmp_path / "out" / "rotated_photo.png")[..., 0]
    # The white half of the photograph is kept, and the black half is replaced.
    np.testing.assert_array_equal(made[4:], 200)
    assert (made[:4] != 0).any()
    Image.open(mask).rotate(90, expand=True).save(tmp_path / "stored.png")
    request = dataclasses.replace(
        request, mask=str(tmp_path / "stored.png"), output=str(tmp_path / "other")
    )
    with pytest.raises(JcmError, match="stored.png of 24x16 has another aspect ratio"):
        edit(config, workdir, request)


def test_broken_pictures_are_found_first_or_skipped(
    student, tmp_path, monkeypatch, caplog
):
    config, workdir = student
    config = config.copy_and_resolve_references()
    config.sample.batch_size = 1
    for name in "abc":
        folders.save(tmp_path / "in" / f"{name}.png", 0, (8, 8))
    (tmp_path / "in" / "c.png").write_bytes(b"no picture")
    request = Request("variations", str(tmp_path / "in"), str(tmp_path / "out"))
    with monkeypatch.context() as patch:
        patch.setattr(edit_lib.loading, "from_config", _refuse)
        with pytest.raises(JcmError, match="1 of 3 pictures cannot be .*skip_broken="):
            edit(config, workdir, request)
    assert not (tmp_path / "out").exists()
    config.data.skip_broken = True
    with logs.shown():
        edit(config, workdir, request)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a.png", "b.png", "before_after.png"]
    assert re.search("wrote 2 pictures to .*out; 1 cannot be read", caplog.text)
    found = jcm.open_pictures(tmp_path / "in", load(workdir), skip_broken=True)
    assert found.shape == (2, 8, 8, 1)


def test_a_picture_that_is_skipped_takes_its_label_with_it(
    student, tmp_path, monkeypatch
):
    config, workdir = student
    config = config.copy_and_resolve_references()
    config.sample.batch_size, config.data.skip_broken = 2, True
    for name in "abcd":
        folders.save(tmp_path / "in" / f"{name}.png", 0, (8, 8))
    (tmp_path / "in" / "b.png").write_bytes(b"no picture")
    used = []

    def routine(*_):
        return lambda batch, labels, **options: (used.extend(labels), batch)[1]

    def labels(config, count, denoiser, class_names):
        return list(range(count))

    monkeypatch.setattr(edit_lib, "_routine", routine)
    monkeypatch.setattr(edit_lib, "image_labels", labels)
    edit(config, workdir, Request("denoise", str(tmp_path / "in"), f"{tmp_path}/out"))
    assert used == [0, 2, 3]


def test_no_result_has_the_name_of_the_summary(student, tmp_path, monkeypatch):
    config, workdir = student
    for name in ("before_after.png", "x.png", "x.bmp"):
        folders.save(tmp_path / "in" / name, 0, (8, 8))
    (tmp_path / "in/before_after.png").rename(tmp_path / "in/before_after")
    monkeypatch.setattr(edit_lib.loading, "from_config", _refuse)
    request = Request("variations", str(tmp_path / "in"), str(tmp_path / "out"))
    with pytest.raises(JcmError, match="before_after: rename the picture"):
        edit(config, workdir, request)


def test_benchmark_of_editing_measures(student, monkeypatch):
    config, workdir = student
    seen = data.load(config.data, "train[:300]")
    classifier = Classifier(seen, len(seen))
    classifier.prepare()
    held_out = data.load(config.data, "train[1790:]").arrays()
    trained = load(workdir, batch_size=56)
    found = editing.measure(
        trained, classifier, to_float(held_out["image"]), held_out["label"]
    )
    assert found["count"] == 7
    assert found["super_resolve"]["ours, all"]["largest_error_of_a_mean"] < 1e-5
    inpaint = found["inpaint"]
    assert inpaint["ours, best of 8"]["rmse"] < inpaint["ours, all"]["rmse"]
    ways = found["denoise"]
    assert ways["gaussian filter"]["psnr"] > ways["noisy"]["psnr"] > 5
    monkeypatch.setattr(editing.distributed, "initialize", lambda _: None)
    arguments = argparse.Namespace(workdir=str(workdir), held_out="train[1790:]")
    with pytest.raises(JcmError, match="was trained on all of its data: train on a pa"):
        editing.main(arguments)
