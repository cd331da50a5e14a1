"""Editing of picture files by the command."""

from types import SimpleNamespace

import folders
import numpy as np
import pytest
from PIL import Image

from jcm import benchmark_editing, data, model
from jcm.edit import Request, edit
from jcm.errors import JcmError
from jcm.images import to_float
from jcm.metrics.classifier import Classifier


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
    with pytest.raises(JcmError, match="out is there already: name a new folder"):
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


def test_interpolation_needs_no_picture(student, tmp_path):
    config, workdir = student
    config = config.copy_and_resolve_references()
    config.sample.num_images = 4
    edit(config, workdir, Request("interpolate", "", str(tmp_path / "out")))
    assert len(list((tmp_path / "out").iterdir())) == 4 + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "paint"}, "--edit.task='paint': use one of inpaint"),
        ({"output": ""}, "name a folder for the results: --edit.output"),
        ({"input": ""}, "name a picture or a folder of pictures: --edit.input"),
        ({"input": "none.png"}, "cannot read none.png .*: name a sound picture"),
        ({"input": "EMPTY"}, "no pictures in .*: name another folder"),
        ({"mask": ""}, "inpainting needs a mask: --edit.mask=mask.png"),
        ({"task": "super_resolve", "factor": 3}, "--edit.factor=3 must be at least 2"),
        ({"task": "outpaint", "factor": 1}, "--edit.factor=1 must be at least 2"),
        ({"sigmas": (1.0, 80.0)}, "must descend"),
    ],
)
def test_what_cannot_be_done_is_refused(student, files, tmp_path, changes, message):
    config, workdir = student
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
    with pytest.raises(JcmError, match=message):
        edit(config, workdir, Request(**fields))
    assert not (tmp_path / "out").exists()


def test_benchmark_of_editing_measures(student, monkeypatch):
    config, workdir = student
    seen = data.load(config.data, "train[:300]")
    classifier = Classifier(seen, len(seen))
    classifier.prepare()
    held_out = data.load(config.data, "train[1790:]").arrays()
    trained = model.load(workdir, batch_size=56)
    found = benchmark_editing.measure(
        trained, classifier, to_float(held_out["image"]), held_out["label"]
    )
    assert found["count"] == 7
    assert found["super_resolve"]["ours, all"]["largest_error_of_a_mean"] < 1e-5
    inpaint = found["inpaint"]
    assert inpaint["ours, best of 8"]["rmse"] < inpaint["ours, all"]["rmse"]
    ways = found["denoise"]
    assert ways["gaussian filter"]["psnr"] > ways["noisy"]["psnr"] > 5
    monkeypatch.setattr(benchmark_editing, "_RUN", SimpleNamespace(value=workdir))
    monkeypatch.setattr(benchmark_editing.distributed, "initialize", lambda _: None)
    with pytest.raises(JcmError, match="was trained on all of its data: train on a pa"):
        benchmark_editing.main(["program"])
