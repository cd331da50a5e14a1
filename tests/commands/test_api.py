"""Tests of `jcm.train` and `jcm.evaluate`."""

import logging as std_logging
import re
import shutil

import jax
import numpy as np
import pytest

import jcm
from jcm import data
from jcm.commands import api
from jcm.commands import evaluate as evaluate_lib
from jcm.data.dataset import GIVEN
from jcm.run import recorded_scores
from jcm.run import workdir as workdir_lib


@pytest.fixture(scope="module")
def arrays(digit_set):
    """Images and labels of the digits."""
    batch = digit_set.arrays()
    return batch["image"], batch["label"]


def _leaves(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model.params)]


def test_training_on_arrays_equals_training_on_the_stored_images(
    tiny, arrays, teacher, tmp_path
):
    """Also a run that was stopped and resumed, and a source of records."""
    config = tiny("digits_edm", **{"train.checkpoint_every": 4})
    whole = jcm.train(config, workdir=tmp_path / "run", data=arrays)
    for a, b in zip(_leaves(whole), _leaves(jcm.load(teacher)), strict=True):
        np.testing.assert_array_equal(a, b)
    record = workdir_lib.read(tmp_path / "run")
    assert record.class_names == tuple("0123456789")
    assert record.config.data.path == "1797 images of 8x8x1, passed to jcm.train"
    shutil.copytree(tmp_path / "run", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "checkpoints" / "8")
    resumed = jcm.train(config, workdir=tmp_path / "part", data=arrays)
    assert resumed.step == 8
    for a, b in zip(_leaves(whole), _leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    images, labels = arrays
    with pytest.raises(jcm.JcmError, match="run on other data .fingerprint"):
        jcm.train(config, workdir=tmp_path / "part", data=(images[::-1], labels))
    with pytest.raises(jcm.JcmError, match="data.name='arrays', not 'digits'"):
        jcm.train(config, workdir=tmp_path / "part")
    with pytest.raises(jcm.JcmError, match="the data was passed to jcm.train; pass it"):
        evaluate_lib.evaluate(record.config, tmp_path / "part")


def test_a_teacher_is_trained_on_the_same_arrays(tiny, arrays, tmp_path):
    images, labels = arrays
    changes = {"train.num_steps": 1, "teacher_train.num_steps": 1}
    config = tiny("digits_cd", **changes)
    pairs = list(zip(images[:100], labels[:100], strict=True))
    names = [f"digit {i}" for i in range(10)]
    model = jcm.train(config, workdir=tmp_path, data=pairs, class_names=names)
    assert model.kind == "consistency"
    assert jcm.load(tmp_path / "teachers" / "diffusion").kind == "diffusion"
    student, teacher = (
        workdir_lib.read(path)
        for path in (tmp_path, tmp_path / "teachers" / "diffusion")
    )
    assert student.class_names == teacher.class_names == tuple(names)
    assert student.data_fingerprint == teacher.data_fingerprint


def test_a_folder_and_a_name_of_a_config(tiny, arrays, tmp_path, monkeypatch):
    images, _ = arrays
    for i, image in enumerate(images[:20]):
        jcm.save_png(image, tmp_path / "pictures" / f"{i}.png", scale=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JCM_CACHE", str(tmp_path / "cache"))
    # Layers change the size, as in real networks.
    changes = {"train.num_steps": 1, "data.dir": "", "model.ch_mult": (1, 2)}
    config = tiny("digits_ct", **changes)
    monkeypatch.setattr(jcm.config, "load", lambda spec: config)
    model = jcm.train("configs/digits_ct.py:smoke", data="pictures")
    assert str(model.workdir) == "runs/digits_ct_smoke"
    assert model.config.data.name == "image_folder" and model.step == 1
    assert data.load(model.config.data).arrays()["image"].shape == (20, 8, 8, 1)


def test_training_on_images_alone_needs_no_scores(tiny, arrays, tmp_path, caplog):
    """The scores of the config need classes; only an evaluation computes them."""
    changes = {"train.num_steps": 1, "eval.scores": ("classifier",)}
    config = tiny("digits_ct", **changes)
    images, _ = arrays
    model = jcm.train(config, workdir=tmp_path, data=images)
    assert model.step == 1
    said = [each.getMessage() for each in caplog.records if each.levelname == "INFO"]
    first, then = said[1:3]
    assert re.fullmatch(
        "the network has [0-9,]+ parameters, listed in parameters.txt", first
    )
    assert then == "compiling the training step"
    with pytest.raises(jcm.JcmError, match="'classifier' needs classes, but arrays"):
        jcm.evaluate(model, data=images)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, x: jcm.train(c, x), "takes config by position: name the other"),
        (lambda c, x: jcm.train(c, dataset=x), "'dataset': use data"),
        (
            lambda c, x: jcm.train(c, workdir="x", data=x / 255),
            "data is float64 from 0",
        ),
        (
            lambda c, x: jcm.train(c, workdir="x", class_names="ab"),
            "pass data=..., too",
        ),
        (lambda c, x: jcm.train("none.py", data=x), "there is no config none.py: `jcm"),
    ],
)
def test_wrong_calls_name_the_remedy(
    tiny, arrays, tmp_path, monkeypatch, call, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(jcm.JcmError, match=message):
        call(tiny("digits_ct"), arrays[0])
    assert not list(tmp_path.iterdir())


def test_a_complete_run_says_how_to_train_longer(tiny, tmp_path):
    config = tiny("digits_ct")
    workdir_lib.claim(tmp_path, workdir_lib.Record(config, ("a",), "0"))
    message = "train longer, continue from it there, with config.init.model="
    with pytest.raises(jcm.JcmError, match=message):
        longer = tiny("digits_ct", **{"train.num_steps": 9})
        workdir_lib.check_same_settings(tmp_path, longer)
    with pytest.raises(jcm.JcmError, match="the workdir without a config is enough$"):
        workdir_lib.check_same_settings(tmp_path, tiny("digits_ct", **{"seed": 9}))


def test_without_a_workdir_the_run_is_named_by_its_data_and_method(
    tiny, arrays, teacher, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folders, model = [], jcm.load(teacher)
    monkeypatch.setattr(
        api.train_lib, "train", lambda config, folder, dataset: folders.append(folder)
    )
    monkeypatch.setattr(api, "load", lambda folder: model)
    jcm.train(tiny("digits_ct"), data=arrays)
    jcm.train(tiny("digits_edm"))
    assert [folder.name for folder in folders] == [f"{GIVEN}_ct", "digits_edm"]
    assert {folder.parent.name for folder in folders} == {"runs"}


def test_a_part_of_the_arrays_is_passed_and_not_named(tiny, arrays):
    config = tiny("digits_ct", **{"data.split": "train[:10]"})
    with pytest.raises(jcm.JcmError, match="is not used with arrays and sources: se"):
        jcm.train(config, workdir="x", data=arrays)


def test_scores_are_those_of_the_command_and_kept(student, arrays, tmp_path, caplog):
    config, workdir = student
    shutil.copytree(workdir, tmp_path / "run")
    model = jcm.load(tmp_path / "run", batch_size=16)
    assert "\n" not in repr(model)
    found = jcm.evaluate(model, scores="classifier", num_images=70, steps=1)
    assert {"confident", "fd"} <= found.keys()
    jcm.evaluate(model, scores="classifier", num_images=70, steps=1, seed=1)
    assert caplog.messages.count("compiling the sampler") == 1
    (tmp_path / "run" / recorded_scores.FILE).unlink()
    jcm.evaluate(model, scores="classifier", num_images=70, steps=1)
    (record,) = recorded_scores.read(tmp_path / "run")
    assert record["scores"] == found and record["samples"] == "1 step"
    assert repr(model).splitlines()[1].startswith("1 step: confident ")
    with config.unlocked():
        config = config.copy_and_resolve_references()
        config.eval.scores, config.eval.num_images = ("classifier",), 70
    evaluate_lib.evaluate(config, tmp_path / "run")
    records = recorded_scores.read(tmp_path / "run")
    assert [each["model"] for each in records].count("consistency") == 2
    two = jcm.evaluate(tmp_path / "run", scores=["classifier"], num_images=70, steps=2)
    assert two == records[-1]["scores"]
    assert len(recorded_scores.read(tmp_path / "run")) == len(records)
    # A model without a workdir keeps nothing, and other data gives other values.
    bare = jcm.Model(model.denoiser, model.params, model.config, batch_size=16)
    options = {"scores": "classifier", "num_images": 70, "steps": 1}
    assert jcm.evaluate(bare, **options) == found
    images, labels = arrays
    other = jcm.evaluate(bare, data=(images[:900], labels[:900]), **options)
    assert other["fd"] != found["fd"]
    assert std_logging.getLogger("absl").filters == []


def test_evaluation_says_what_is_missing(student):
    model = jcm.load(student[1])
    with pytest.raises(
        jcm.JcmError, match="name at least one score, such as scores='f"
    ):
        jcm.evaluate(model)
    for seed in (-1, 2**32):  # before the model is opened
        with pytest.raises(jcm.JcmError, match=f"seed={seed} must be "):
            jcm.evaluate("nowhere", seed=seed)
    with pytest.raises(jcm.JcmError, match="'fidd' is unknown: use some of"):
        jcm.evaluate(model, scores="fidd")
    bare = jcm.Model(
        model.denoiser,
        model.params,
        model.config,
        about=jcm.model.card.About(trained=False),
    )
    with pytest.raises(
        jcm.JcmError, match="comes from elsewhere: pass the real images"
    ):
        jcm.evaluate(bare, scores="classifier")
