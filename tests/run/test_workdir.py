"""Tests of the record of a run: what it says, and which runs may resume."""

import json
import shutil

import jax
import pytest
from absl import logging

import jcm
from jcm.commands import config as config_lib
from jcm.commands import evaluate as evaluate_lib
from jcm.commands.train import train
from jcm.run import workdir as workdir_lib
from jcm.runtime import versions
from jcm.runtime.errors import JcmError


def _record(workdir):
    return json.loads((workdir / "run.json").read_text())


@pytest.fixture
def copied(teacher, tmp_path):
    """A run that is done at step 8, which may be changed."""
    return shutil.copytree(teacher, tmp_path / "run")


@pytest.fixture
def warnings(monkeypatch):
    """The warnings of the log."""
    found = []
    monkeypatch.setattr(
        logging, "warning", lambda text, *args: found.append(text % args)
    )
    return found


def test_fewer_steps_than_done_are_refused(tiny, copied):
    before = (copied / "run.json").read_bytes()
    with pytest.raises(
        JcmError, match="has done 8 steps, more than .*num_steps=3: set"
    ):
        train(tiny("digits_edm", **{"train.num_steps": 3}), copied)
    assert (copied / "run.json").read_bytes() == before
    # The length of a teacher's training has its own field.
    record = workdir_lib.read(copied)
    record.config.train.num_steps = 3
    with pytest.raises(JcmError, match="than config.teacher_train.num_steps=3: set at"):
        workdir_lib.claim(copied, record, "teacher_train")
    shutil.rmtree(copied / "checkpoints" / "8")
    # A shorter run than planned is a run that ends.
    config = tiny("digits_edm", **{"train.num_steps": 4})
    train(config, copied)
    assert _record(copied)["config"]["train"]["num_steps"] == 4
    watched = config.copy_and_resolve_references()
    watched.eval.watch = True
    watched.sample.num_images = 2
    steps = []
    original = evaluate_lib._subjects_of_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            evaluate_lib,
            "_subjects_of_step",
            lambda config, workdir, step, given: (
                steps.append(step) or original(config, workdir, step, given)
            ),
        )
        evaluate_lib.evaluate(watched, copied)
    assert steps == [4]


def test_every_start_records_versions_and_devices(tiny, copied, warnings, monkeypatch):
    (start,) = _record(copied)["starts"]
    assert start["step"] == 0 and start["time"].startswith("20")
    assert start["jax"] == jax.__version__ and start["jcm"] == jcm.__version__
    assert start.keys() >= {"python", "jaxlib", "flax", "optax", "orbax-checkpoint"}
    assert (start["device"], start["devices"], start["processes"]) == ("cpu", 8, 1)
    assert start["commit"] == versions.commit()
    config = tiny("digits_edm")
    train(config, copied)  # It is complete, so that nothing starts.
    assert len(_record(copied)["starts"]) == 1
    shutil.rmtree(copied / "checkpoints" / "8")
    train(config, copied)
    assert not [text for text in warnings if "versions" in text]
    now = versions.environment() | {"jax": "99.0"}
    monkeypatch.setattr(versions, "environment", lambda: now)
    shutil.rmtree(copied / "checkpoints" / "8")
    train(config, copied)
    assert [each["step"] for each in _record(copied)["starts"]] == [0, 4, 4]
    (warning,) = (text for text in warnings if "versions" in text)
    assert f"(jax {jax.__version__}, now 99.0): its numbers may differ" in warning
    # The first two starts are equal.
    software = workdir_lib.read(copied).software
    assert software.count("jcm ") == 2 and "; from step 4: jcm" in software
    jcm.save(jcm.load(copied), copied / "saved")
    assert f"Software: {software}." in (copied / "saved" / "README.md").read_text()
    assert jcm.load(copied / "saved").about.software == software
    shown = config_lib._software(str(copied))
    assert " ".join(shown.split()) == software
    assert max(map(len, shown.splitlines())) <= 88
    assert config_lib._software(None) == config_lib._software(str(copied / "no")) == ""


def test_environments_differ_by_commit_only_if_the_code_differs():
    old = {"jcm": "1", "code": "a", "commit": "x", "jax": "1"}
    assert versions.differences(old, old | {"commit": "y"}) == []
    other = old | {"code": "b"}
    assert versions.differences(old, other | {"commit": "y"}) == ["commit x, now y"]
    assert versions.differences(old, other | {"commit": ""}) == ["code a, now b"]
    assert versions.differences(old, old | {"jax": "2"}) == ["jax 1, now 2"]


def test_an_environment_may_lack_what_this_version_records():
    now = versions.environment()
    old = {"jcm": "1", "jax": "1", "commit": "x"}
    found = versions.differences(old, now)
    assert f"jax 1, now {jax.__version__}" in found
    assert f"optax unknown, now {now['optax']}" in found
    assert versions.in_words(old) == "jcm 1 (x), jax 1, on unknown x devices"


def test_what_only_shows_the_training_of_a_teacher_may_change(tiny, tmp_path):
    config = tiny("digits_cd", **{"teacher_train.num_steps": 4})
    workdir_lib.claim(tmp_path, workdir_lib.Record(config, (), ""))
    shown = ("log_every", "sample_every", "checkpoint_every")
    other = config.copy_and_resolve_references()
    other.teacher_train.update(dict.fromkeys(shown, 3))
    workdir_lib.check_same_settings(tmp_path, other)
    other.teacher_train.num_steps = 5
    with pytest.raises(JcmError, match="config.teacher_train.num_steps=4, not 5: use"):
        workdir_lib.check_same_settings(tmp_path, other)


def test_a_run_outlives_the_model_that_it_started_from(tiny, copied):
    record = _record(copied)
    record["config"]["init"]["model"] = "/nowhere"
    (copied / "run.json").write_text(json.dumps(record))
    train(tiny("digits_edm", **{"init.model": "/nowhere"}), copied)
    assert jcm.load(copied).step == 8


def _no_step(record):
    del record["starts"][0]["step"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": None}, "config: Expected `object`, got `null`"),
        ({"class_names": "abc"}, "class_names: Expected `array`, got `str`"),
        ({"class_names": [1]}, r"class_names\[0\]: Expected `str`, got `int`"),
        ({"teacher_hashes": []}, "teacher_hashes: Expected `object`"),
        ({"data_fingerprint": 5}, "data_fingerprint: Expected `str`"),
        ({"starts": [None]}, r"starts\[0\]: Expected `object`, got `null`"),
        (_no_step, "starts: each needs a step and a time"),
        ({"format": []}, "format: Expected"),
        ({"colour": 1}, "unknown field `colour`"),
        ({"config": {"method": 5}}, "config.method=5 must be a string"),
        ({"noise": None}, "config.noise=None must be a section"),
        ({"noise": {"sigma_max": 10**400}}, "0 does not fit into 32 bits"),
        ({"noise": {"sigma_max": 10**50}}, "sigma_max=10+ does not fit into 32 bits"),
        ({"noise": {"sigma_min": 100.0}}, "config.noise: sigma_min=100.0 must be"),
        (
            {"model": {"ch_mult": [[1]]}},
            r"config.model.ch_mult=\[\[1\]\] must be a who",
        ),
        ({"model": {"nf": "8"}}, "config.model.nf='8' must be a whole number"),
        ({"train": {"num_steps": None}}, "config.train.num_steps=None must be a whole"),
        ({"train": {"x" * 10**6: 1}}, "config.train.x{20,90} ... x+ is unknown"),
    ],
)
def test_a_damaged_record_is_refused_in_one_line(teacher, tmp_path, change, message):
    record = _record(teacher)
    sections = record["config"]
    if callable(change):
        change(record)
    elif change.keys() <= sections.keys():
        for name, values in change.items():
            sections[name] = values if values is None else sections[name] | values
    else:
        record |= change
    path = tmp_path / "run.json"
    path.write_text(json.dumps(record))
    with pytest.raises(JcmError, match=message) as raised:
        workdir_lib.read(tmp_path)
    assert str(raised.value).startswith(f"{path} is damaged")


def test_only_folders_of_steps_count(teacher, copied):
    record = workdir_lib.read(copied)
    for name in (
        "²",
        "١٢",
        "8 ",
        "+9",
        "0012",
        "1e3",
        "12.orbax-checkpoint-tmp",
        "a\n",
    ):
        (copied / "checkpoints" / name).mkdir()
    (copied / "checkpoints" / "99").touch()
    assert workdir_lib.newest_step(copied) == 8
    workdir_lib.claim(copied, record)
    assert jcm.load(copied).step == 8
    shutil.rmtree(copied / "checkpoints")
    (copied / "checkpoints").touch()
    with pytest.raises(JcmError, match="checkpoints is not a folder: move it away"):
        workdir_lib.newest_step(copied)
