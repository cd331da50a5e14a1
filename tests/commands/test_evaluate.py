"""Tests of evaluation, also with interruptions."""

import dataclasses
import json
import shutil
from unittest import mock

import jax
import numpy as np
import pytest
from recorded import recorded

import jcm
from jcm import config as config_lib
from jcm import data
from jcm.commands import evaluate, search
from jcm.commands import sample as sample_lib
from jcm.commands import train as train_lib
from jcm.data import given
from jcm.diffusion.schedule import Schedule
from jcm.metrics import scores
from jcm.metrics.classifier import Classifier
from jcm.model import scoring
from jcm.model.loading import load
from jcm.model.pixels import fill, sample_pixels
from jcm.runtime import growing
from jcm.runtime.errors import JcmError
from jcm.training import setup
from jcm.training.preview import Preview


def test_each_way_of_sampling_is_scored_once(scored, monkeypatch):
    config, workdir = scored
    evaluate.evaluate(config, workdir)
    records = recorded(workdir)
    assert [(r["model"], r["samples"], r["seed"]) for r in records] == [
        (name, how, seed)
        for name, how in (
            ("teacher", "Heun, 5 evaluations"),
            ("consistency", "1 step"),
            ("consistency", "2 steps"),
        )
        for seed in (0, 5)
    ]
    assert {r["step"] for r in records} == {8}
    assert not list((workdir / "evaluation").glob("*.uint8"))
    assert (workdir / "comparison.png").stat().st_size > 1000
    rows = json.loads((workdir / "scores.json").read_text())["rows"]
    assert rows[1]["samples"] == "consistency, 1 step" and rows[1]["step"] == 8
    values = rows[1]["scores"]["fd"]
    assert values == [r["scores"]["fd"] for r in records[2:4]]
    row = (workdir / "scores.md").read_text().splitlines()[3]
    spread = f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
    assert f"{spread} ({min(values):.3f})" in row
    assert list((workdir / "evaluation").glob("events*"))

    def refuse(*_, **__):
        raise AssertionError("sampled again")

    monkeypatch.setattr(scoring, "fill", refuse)
    # A kill came after the record, before the samples were deleted.
    identity = {key: records[-1][key] for key in tuple(records[-1])[:9]}
    stem = scoring.stem_of("consistency, 2 steps, seed 5", identity)
    left = workdir / "evaluation" / f"{stem}.uint8"
    left.touch()
    growing.journal_of(left).touch()
    before = (workdir / "scores.md").read_text()
    evaluate.evaluate(config, workdir)
    assert (workdir / "scores.md").read_text() == before
    assert not list((workdir / "evaluation").glob("*.uint8*"))
    assert not (workdir / "earlier").exists()
    with config.unlocked():
        config.eval.seeds = (0, 6)
    with pytest.raises(AssertionError, match="sampled again"):
        evaluate.evaluate(config, workdir)
    monkeypatch.undo()
    # A later request for the samples makes them, without a second record.
    with config.unlocked():
        config.eval.seeds, config.eval.keep_samples = (0, 5), True
        config.teachers.diffusion = "/nowhere"
    evaluate.evaluate(config, workdir)
    assert len(list((workdir / "evaluation").glob("*.npz"))) == 4
    # Other settings have other results; the earlier ones are kept.
    assert (workdir / "earlier" / "1" / "scores.md").read_text() == before
    kept = {path.name for path in (workdir / "earlier" / "1").iterdir()}
    assert kept == {"comparison.png", "scores.json", "scores.md", "settings.json"}
    assert (workdir / "scores.md").read_text() != before
    assert recorded(workdir) == records
    # Another score uses the samples that were kept.
    monkeypatch.setattr(scoring, "fill", refuse)
    monkeypatch.setattr(Classifier, "identity", lambda _: {"classifier": "new"})
    evaluate.evaluate(config, workdir)
    more = recorded(workdir)[len(records) :]
    assert [line["scores"] for line in more] == [line["scores"] for line in records[2:]]


class _Constant:
    """A score that gives all samples the same value."""

    def __init__(self, name, version="1"):
        self.name, self.version = name, version

    def identity(self):
        return {self.name: {"version": self.version}}

    def prepare(self):
        pass

    def __call__(self, images, labels):
        return {self.name: float(len(self.name) + int(self.version))}


def test_results_depend_on_the_pictures_of_a_folder(student, digit_set):
    config, _ = student
    changed = dataclasses.replace(digit_set, fingerprint="changed")
    subject = mock.Mock(spec=scoring.Subject, digest="weights")
    for settings in (
        lambda dataset: evaluate._settings(config, dataset, {}),
        lambda dataset: search._settings(config, dataset, subject),
    ):
        assert settings(digit_set) != settings(changed)


def test_a_recorded_score_is_found_among_any_others(scored, monkeypatch):
    config, workdir = scored
    subject = scoring.Subject.of("consistency", load(workdir, batch_size=16))
    dataset = data.load(config.data)

    def score(*made):
        monkeypatch.setattr(scores, "create", lambda *_: made)
        return scoring.Scorer(config, workdir, dataset)(subject, Schedule((80.0,)), 0)

    both = score(_Constant("fid"), _Constant("kid"))
    assert both == {"fid": 4, "kid": 4}
    score(_Constant("sfid"))
    monkeypatch.setattr(scoring, "fill", None)
    assert score(_Constant("kid")) == {"kid": 4}
    assert score(_Constant("sfid"), _Constant("fid")) == {"sfid": 5, "fid": 4}
    monkeypatch.setattr(scoring, "fill", fill)
    # If its network has other weights, it is another score.
    assert score(_Constant("fid", "7")) == {"fid": 10}
    assert len(recorded(workdir)) == 3


def test_sampling_resumes_after_a_kill(scored, monkeypatch, caplog):
    config, workdir = scored
    subject = scoring.Subject.of("consistency", load(workdir, batch_size=16))
    schedule, dataset = Schedule((80.0,)), data.load(config.data)
    with config.unlocked():
        config.eval.keep_samples = True
    whole = scoring.Scorer(config, workdir, dataset)(subject, schedule, 7)
    (kept,) = (workdir / "evaluation").glob("*.npz")
    images = np.load(kept)["arr_0"]
    assert images.shape == (80, 8, 8, 1) and images.dtype == np.uint8
    shutil.rmtree(workdir / "evaluation")

    monkeypatch.setattr(scoring, "_PART", 16)
    parts = []

    def make(sampler, params, seed, indices, schedule, labels):
        parts.append(indices)
        if len(parts) == 3:
            raise KeyboardInterrupt
        return sample_pixels(sampler, params, seed, indices, schedule, labels)

    monkeypatch.setattr(scoring, "sample_pixels", make)
    with pytest.raises(KeyboardInterrupt):
        scoring.Scorer(config, workdir, dataset)(subject, schedule, 7)
    (begun,) = (workdir / "evaluation").glob("*.uint8")
    assert begun.stat().st_size == 32 * 64
    with begun.open("ab") as file:
        file.write(b"half an image")
    assert scoring.Scorer(config, workdir, dataset)(subject, schedule, 7) == whole
    assert parts[2:] == [range(i, i + 16) for i in (32, 32, 48, 64)]
    (kept,) = (workdir / "evaluation").glob("*.npz")
    np.testing.assert_array_equal(np.load(kept)["arr_0"], images)
    assert not list((workdir / "evaluation").glob("*.uint8*"))

    # Samples that are not what was written are made again.
    good = kept.read_bytes()
    for content in (good[:-100], good[:2000] + bytes(1000) + good[3000:], None):
        if content is None:
            np.savez(kept, np.zeros_like(images))
        else:
            kept.write_bytes(content)
        (workdir / "evaluation" / "scores.jsonl").unlink()
        assert scoring.Scorer(config, workdir, dataset)(subject, schedule, 7) == whole
        assert f"{kept}" in caplog.text and "the samples are made again" in caplog.text
        assert kept.read_bytes() == good
        caplog.clear()
    (workdir / "evaluation" / "scores.jsonl").unlink()
    monkeypatch.setattr(scoring, "fill", None)
    assert scoring.Scorer(config, workdir, dataset)(subject, schedule, 7) == whole


def test_a_sample_that_is_not_finite_gets_no_score(scored):
    config, workdir = scored
    trained = load(workdir)
    trained.params = jax.tree.map(lambda p: p * 1e30, trained.params)
    scorer = scoring.Scorer(config, workdir, data.load(config.data))
    with pytest.raises(JcmError, match="image 0 of seed 0, 1 step, is not finite"):
        scorer(scoring.Subject.of("broken", trained), Schedule((80.0,)), 0)
    assert not (workdir / "evaluation" / "scores.jsonl").exists()


def test_an_incomplete_line_of_scores_is_ignored(scored):
    config, workdir = scored
    with config.unlocked():
        config.eval.seeds = (0,)
        config.teachers.diffusion = "/nowhere"
    evaluate.evaluate(config, workdir)
    path = workdir / "evaluation" / "scores.jsonl"
    whole = recorded(workdir)
    path.write_text(path.read_text()[:-30])
    evaluate.evaluate(config, workdir)
    lines = path.read_text().splitlines()
    assert json.loads(lines[0]) == whole[0]
    assert json.loads(lines[-1]) == whole[-1]


def test_each_new_checkpoint_is_evaluated_until_the_last(scored, monkeypatch):
    config, workdir = scored
    shutil.move(workdir / "checkpoints" / "8", workdir / "later")
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 2:
            shutil.move(workdir / "later", workdir / "checkpoints" / "8")

    monkeypatch.setattr(evaluate.time, "sleep", sleep)
    with config.unlocked():
        config.eval.watch = True
    evaluate.evaluate(config, workdir)
    assert len(waited) == 2
    rows = json.loads((workdir / "scores.json").read_text())["rows"]
    assert [(row["step"], row["samples"].split(",")[0]) for row in rows] == [
        (8, "teacher"),
        (4, "consistency"),
        (4, "consistency"),
        (8, "consistency"),
        (8, "consistency"),
    ]
    assert rows[1]["scores"] != rows[3]["scores"]


def test_a_deleted_checkpoint_is_skipped(scored, monkeypatch, caplog):
    config, workdir = scored
    with config.unlocked():
        config.eval.watch = True

    def delete_and_load(place, *, step=0, **options):
        if step == 4:
            shutil.rmtree(workdir / "checkpoints" / "4")
        return load(place, step=step, **options)

    monkeypatch.setattr(evaluate.loading, "load", delete_and_load)
    evaluate.evaluate(config, workdir)
    assert "step 4 was deleted before it was evaluated" in caplog.text
    assert {record["step"] for record in recorded(workdir)} == {8}


def test_an_error_is_not_taken_for_a_deleted_checkpoint(scored, monkeypatch):
    config, workdir = scored
    with config.unlocked():
        config.eval.watch = True

    def fail(*_, **__):
        shutil.rmtree(workdir / "checkpoints" / "4", ignore_errors=True)
        raise JcmError("no room")

    monkeypatch.setattr(scoring, "fill", fail)
    with pytest.raises(JcmError, match="no room"):
        evaluate.evaluate(config, workdir)


def test_a_checkpoint_is_chosen_by_its_step(scored):
    config, workdir = scored
    with config.unlocked():
        config.sample.step, config.teachers.diffusion = 4, "/nowhere"
    evaluate.evaluate(config, workdir)
    assert {record["step"] for record in recorded(workdir)} == {4}
    with config.unlocked():
        config.sample.step = 5
    with pytest.raises(
        JcmError, match=r"no checkpoint of step 5 in .* \(available: 4, 8\): set"
    ):
        evaluate.evaluate(config, workdir)


def test_two_programs_may_fill_one_file(tmp_path):
    whole = np.random.default_rng(0).integers(0, 256, (3000, 2, 2, 1), np.uint8)
    path, parts, second = tmp_path / "samples.uint8", [], []

    def take(part):
        return whole[part.start : part.stop]

    def make(part):
        parts.append(part)
        if part.start == 1024:  # The other one finishes first and deletes the file.
            second.append(np.array(fill(path, whole.shape, take, "", part=1024)))
            growing.delete(path)
        return take(part)

    made = fill(path, whole.shape, make, "", part=1024)
    assert len(parts) == 3
    np.testing.assert_array_equal(made, whole)
    np.testing.assert_array_equal(second[0], whole)


def test_scores_while_training_change_nothing_else(
    tiny, teacher, student, tmp_path, monkeypatch
):
    config = tiny(
        "digits_cd",
        **{
            "teachers.diffusion": str(teacher),
            "eval.scores": ("classifier",),
            "eval.num_images": 70,
            "eval.every_kimg": 0.064,  # Four steps of 16 images.
        },
    )
    # Each scoring is interrupted once, after its step was saved, and done by the next
    # start.
    score, tried = Preview.score, set()

    def broken_off(self, state, scores):
        if int(state.step) not in tried:
            tried.add(int(state.step))
            raise KeyboardInterrupt
        score(self, state, scores)

    monkeypatch.setattr(Preview, "score", broken_off)
    for step in (4, 8):
        with pytest.raises(KeyboardInterrupt):
            train_lib.train(config, tmp_path)
        assert (tmp_path / "checkpoints" / str(step)).is_dir()
    for _ in range(2):  # The second has nothing left to do.
        train_lib.train(config, tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    scored = [line for line in map(json.loads, lines) if "eval/fd/1 step" in line]
    assert [line["step"] for line in scored] == [4, 8]
    ours, theirs = (load(place).params for place in (tmp_path, student[1]))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# --- images of others


def test_samples_of_another_program_are_scored_beside_the_run_or_alone(
    scored, classifier, tmp_path
):
    config, workdir = scored
    real = data.load(config.data).take(np.arange(70))
    np.savez(tmp_path / "theirs.npz", real["image"])
    with config.unlocked():
        config.eval.seeds = (0,)
    evaluate.evaluate(config, workdir, samples=str(tmp_path / "theirs.npz"))
    rows = json.loads((workdir / "scores.json").read_text())["rows"]
    assert [row["samples"] for row in rows] == [
        "teacher, Heun, 5 evaluations",
        *("consistency, 1 step", "consistency, 2 steps", "theirs.npz, 70 pictures"),
    ]
    # No one knows what the samples should be, so `as_asked` is missing.
    expected = classifier(real["image"], None)
    assert rows[3]["scores"] == {name: [value] for name, value in expected.items()}
    assert [row["num_images"] for row in rows] == [80, 80, 80, 70]
    text = (workdir / "scores.md").read_text()
    assert "80 or 70 uint8 images per row; fd counts, since it is of the first" in text
    place = tmp_path / "alone"
    evaluate.evaluate(config, place, samples=str(tmp_path / "theirs.npz"))
    (row,) = json.loads((place / "scores.json").read_text())["rows"]
    assert row == rows[3] and (place / "comparison.png").exists()
    before = (place / "evaluation" / "scores.jsonl").read_text()
    evaluate.evaluate(config, place, samples=str(tmp_path / "theirs.npz"))
    assert (place / "evaluation" / "scores.jsonl").read_text() == before
    with config.unlocked():
        config.eval.scores = ()
    with pytest.raises(JcmError, match="--samples needs scores: name some"):
        evaluate.evaluate(config, place, samples=str(tmp_path / "theirs.npz"))


def test_labelled_samples_are_scored_by_their_labels(scored, classifier, tmp_path):
    config, _ = scored
    dataset = data.load(config.data)
    real = dataset.take(np.arange(70))
    scorer = scoring.Scorer(config, tmp_path, dataset, given=70)
    found = scorer.of_pictures(
        "theirs", given.load((real["image"], real["label"]), 8, 1)
    )
    assert found == classifier(real["image"], real["label"].tolist())
    assert found["as_asked"] > 0.97
    some = real["label"] < 5  # The samples need not be of all classes.
    images, labels = real["image"][some], real["label"][some]
    images, labels = np.tile(images, (3, 1, 1, 1)), np.tile(labels, 3)
    found = scorer.of_pictures("some", given.load((images, labels), 8, 1))
    assert found["as_asked"] > 0.97


def test_classes_of_other_images_are_not_compared_by_number(scored, tmp_path):
    config, workdir = scored
    dataset = data.load(config.data)
    model = load(workdir)
    scorer = scoring.Scorer(config, tmp_path, dataset)
    model.class_names = ("cat", "dog")
    with pytest.raises(
        JcmError, match=r"classes cat, dog, and .* 0, 1, 2, \.\.\. .10.: "
    ):
        scorer._labels(model)
    model.class_names = tuple(reversed("0123456789"))  # numbers without a meaning
    assert scorer._labels(model) is None


def test_scores_while_training_need_the_classes_of_the_data(
    student, digit_set, monkeypatch, tmp_path
):
    """The real images may be those of `config.eval.reference`."""
    config = student[0].copy_and_resolve_references()
    config.eval.scores = ("classifier",)
    shifted = dataclasses.replace(digit_set, class_names=tuple("abcdefghij"))
    conditional, other = (
        mock.Mock(**{"denoiser.num_classes": count}) for count in (10, 0)
    )
    setup._score_groups(config, shifted, conditional)
    monkeypatch.setattr(scores, "real_images", lambda *_: digit_set)
    setup._score_groups(config, shifted, other)
    message = "classes a, b, c, .*the real images 0, 1, 2, "
    with pytest.raises(JcmError, match=message):
        setup._score_groups(config, shifted, conditional)
    # The evaluation at the end of the training.
    monkeypatch.setattr(evaluate.data, "load", lambda *_: shifted)
    config.eval.reference = str(tmp_path)
    evaluate.check(config)
    config.model.class_conditional = True
    with pytest.raises(JcmError, match=message):
        evaluate.check(config)


def test_a_model_from_elsewhere_is_scored_and_sampled(scored, tmp_path):
    config, workdir = scored
    evaluate.evaluate(config, workdir)
    jcm.save(jcm.load(workdir), tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    known = [r["scores"] for r in recorded(workdir) if r["samples"] == "2 steps"]
    mean = np.mean([each["confident"] for each in known])
    assert f"| 2 steps | 80 | {mean:.4g} |" in card
    assert "Heun" not in card and "Method `cd`" in card
    with config.unlocked():
        config.sample.model = str(tmp_path / "model")
    place = tmp_path / "elsewhere"
    evaluate.evaluate(config, place)
    found = [r for r in recorded(place) if r["samples"] == "2 steps"]
    assert [each["scores"] for each in found] == known
    assert {r["model"] for r in recorded(place)} == {str(tmp_path / "model")}
    assert (place / "comparison.png").exists() and not (place / "run.json").exists()
    sample_lib.sample(config, place)
    (path,) = (place / "samples").glob("step_8_seed_0_2_steps_9_images_*.npz")
    with np.load(path) as file:
        assert file["arr_0"].shape == (9, 8, 8, 1)
    for call, field, value, message in (
        (
            sample_lib.sample,
            "data.image_size",
            16,
            "image_size=8 and channels=1, and n",
        ),
        (
            sample_lib.sample,
            "data.channels",
            3,
            "image_size=8 and channels=1, and not",
        ),
        (sample_lib.sample, "sample.step", 4, "is a saved model: drop step=4"),
        (sample_lib.sample, "noise.sigma_max", 90.0, "with sigma_max=80.0 and not 90"),
        (sample_lib.sample, "sample.model", "x", "config.sample.model: there is no x"),
        (evaluate.evaluate, "eval.watch", True, "checkpoints of a workdir: drop"),
    ):
        wrong = config.copy_and_resolve_references()
        wrong.update_from_flattened_dict({field: value})
        with pytest.raises(JcmError, match=message):
            call(wrong, place)
    with pytest.raises(JcmError, match="run already holds a run: use another workdir"):
        sample_lib.sample(config, workdir)


def test_the_table_names_the_pictures_that_it_compares_with():
    config = config_lib.base("cd")
    config.eval.reference = "pictures"
    row = evaluate.Row(8, "consistency, 1 step", {"fid": [2.0]}, num_images=16)
    note = evaluate._markdown(config, [row]).splitlines()[-1]
    assert note == "16 uint8 images per row; compared with pictures"
