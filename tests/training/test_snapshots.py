"""Tests of snapshots of averages, and of workdirs of other versions."""

import json
import shutil

import jax
import numpy as np
import pytest

import jcm
from jcm.commands.train import train
from jcm.run.checkpoints import Checkpoints
from jcm.runtime import versions
from jcm.runtime.errors import JcmError
from jcm.training import snapshots


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A run with three kinds of averages, and snapshots of the power averages."""
    changes = {
        "train.averages": ("halflife:0.001/0.5", "power:0.05", "power:0.1", "0.9"),
        "train.snapshot_every": 2,
        "train.num_steps": 6,
        "train.checkpoint_every": 3,
        "train.keep_checkpoints": 1,
        "train.sample_every": 0,
        "optim.warmup_kimg": 0.0,
    }
    config, workdir = tiny("digits_edm", **changes), tmp_path_factory.mktemp("run")
    train(config, workdir)
    return config, workdir


def test_there_is_one_save_at_a_time(run, tmp_path, monkeypatch):
    """Two saves of a run of several processes would meet at the same barriers."""
    config, workdir = run
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    shutil.rmtree(tmp_path / "run" / "snapshots")
    saving = set()
    save, finish = Checkpoints.save, Checkpoints.finish

    def save_alone(self, state, *rest):
        assert saving <= {self}
        saving.add(self)
        save(self, state, *rest)

    def finish_and_note(self):
        finish(self)
        saving.discard(self)

    monkeypatch.setattr(Checkpoints, "save", save_alone)
    monkeypatch.setattr(Checkpoints, "finish", finish_and_note)
    often = config.copy_and_resolve_references()
    often.train.checkpoint_every = often.train.snapshot_every = 1
    train(often, tmp_path / "run")


def test_every_snapshot_is_kept_and_holds_the_power_averages(run):
    config, workdir = run
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.steps == [6]
    shapes = jcm.load(workdir).params
    template = dict.fromkeys(("power:0.05", "power:0.1"), shapes)
    with Checkpoints(workdir, folder=snapshots.FOLDER) as kept:
        assert kept.steps == [2, 4, 6]
        found = {
            step: kept.restore_part("ema_params", template, step) for step in (2, 6)
        }
    for spec in template:
        last = jcm.load(workdir, ema=spec).params
        for a, b in zip(*map(jax.tree.leaves, (found[6][spec], last)), strict=True):
            np.testing.assert_array_equal(a, b)
    early, late = (found[step]["power:0.05"]["conv_in"]["kernel"] for step in (2, 6))
    assert np.abs(early - late).max() > 0
    wide = found[6]["power:0.1"]["conv_in"]["kernel"]
    assert np.abs(wide - late).max() > 0
    # Samples use the first average.
    first = jcm.load(workdir, ema="halflife:0.001/0.5").params["conv_in"]["kernel"]
    np.testing.assert_array_equal(jcm.load(workdir).params["conv_in"]["kernel"], first)


def test_snapshots_may_be_made_more_often_after_a_kill(run, tmp_path):
    """Checkpoints older than the snapshots remain, and the run makes those between."""
    config, workdir = run
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    other = config.copy_and_resolve_references()
    other.optim.learning_rate = 0.5
    with pytest.raises(JcmError, match="holds a run with config.optim.learning_rate"):
        train(other, tmp_path / "run")
    often = config.copy_and_resolve_references()
    often.train.snapshot_every = 3
    train(often, tmp_path / "run")
    with Checkpoints(tmp_path / "run", folder=snapshots.FOLDER) as kept:
        assert kept.steps == [2, 3, 4, 6]


def test_a_resumed_run_leaves_the_snapshots_that_it_has(run, tmp_path):
    """A kill between a snapshot and a checkpoint makes the same step again."""
    config, workdir = run
    with Checkpoints(workdir, folder=snapshots.FOLDER) as kept:
        before = kept.steps
    longer = config.copy_and_resolve_references()
    longer.train.num_steps = 8
    # SIGTERM saves a step before its snapshot is made; the resumed run makes it.
    shutil.rmtree(workdir / "snapshots" / "6")
    (workdir / "snapshots" / "8").mkdir()  # It looks like a complete snapshot.
    (workdir / "snapshots" / "8" / "_CHECKPOINT_METADATA").write_text("{}")
    train(longer, workdir)
    with Checkpoints(workdir, folder=snapshots.FOLDER) as kept:
        assert kept.steps == [*before, 8]
    assert not (workdir / "snapshots" / "8" / "ema_params").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.snapshot_every": 2}, "snapshot_every needs power averages: add power"),
        ({"train.averages": ("mean",)}, "config.train.averages: 'mean' is unknown"),
        (
            {"train.averages": (0.99,)},
            "must be strings: put 0.99 in quotes",
        ),
        (
            {"model.guidance": True},
            "guidance=True is of no use with config.method='edm'",
        ),
    ],
)
def test_impossible_averages_are_refused_first(tiny, tmp_path, changes, message):
    with pytest.raises(JcmError, match=message):
        train(tiny("digits_edm", **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_files_of_other_versions_are_refused_by_name(teacher, tmp_path):
    record = json.loads((teacher / "run.json").read_text())
    del record["format"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(
        JcmError, match=r"run.json was written by an older version of jcm, whose files"
    ):
        jcm.load(tmp_path)
    folder = tmp_path / "folder"
    jcm.save(jcm.load(teacher), folder)
    about = json.loads((folder / "config.json").read_text())
    del about["format"]
    (folder / "config.json").write_text(json.dumps(about))
    with pytest.raises(
        JcmError, match=r"folder was saved by an older version of jcm, whose files"
    ):
        jcm.load(folder)
    about["format"] = versions.FORMAT + 1
    (folder / "config.json").write_text(json.dumps(about))
    with pytest.raises(JcmError, match="saved by a newer version of jcm: upgrade jcm"):
        jcm.load(folder)
