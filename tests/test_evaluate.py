"""Evaluation: every score once, whatever interrupts it; the search for noise levels."""

import json
import shutil

import jax
import numpy as np
import pytest

from jcm import data, evaluate, model, scoring, search
from jcm import train as train_lib
from jcm.errors import JcmError
from jcm.sampling import Schedule


@pytest.fixture
def run(student, tmp_path):
    """A workdir of its own, and a config that scores 40 samples with two seeds."""
    config, workdir = student
    shutil.copytree(workdir, tmp_path / "run")
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.eval.scores = ("classifier",)
        config.eval.num_images = 40
        config.eval.seeds = (0, 5)
        config.sample.num_images = 9
    return config, tmp_path / "run"


def _records(workdir):
    lines = (workdir / "evaluation" / "scores.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_every_way_of_sampling_is_scored_once(run, monkeypatch):
    config, workdir = run
    evaluate.evaluate(config, workdir)
    records = _records(workdir)
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
    table = json.loads((workdir / "scores.json").read_text())
    assert table["scores"]["consistency, 1 step"]["fd"] == [
        r["scores"]["fd"] for r in records[2:4]
    ]
    row = (workdir / "scores.md").read_text().splitlines()[3]
    values = table["scores"]["consistency, 1 step"]["fd"]
    spread = f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
    assert f"{spread} ({min(values):.3f})" in row
    assert list((workdir / "evaluation").glob("events*"))

    def refuse(*_):
        raise AssertionError("sampled again")

    monkeypatch.setattr(scoring, "fill", refuse)
    before = (workdir / "scores.md").read_text()
    evaluate.evaluate(config, workdir)
    assert (workdir / "scores.md").read_text() == before
    with config.unlocked():
        config.eval.seeds = (0, 6)
    with pytest.raises(AssertionError, match="sampled again"):
        evaluate.evaluate(config, workdir)


def test_samples_go_on_after_a_kill(run, monkeypatch):
    config, workdir = run
    subject = scoring.Subject.of("consistency", model.load(workdir, batch_size=16))
    schedule, dataset = Schedule((80.0,)), data.load(config.data)
    with config.unlocked():
        config.eval.keep_samples = True
    whole = scoring.Scorer(config, workdir, dataset)(subject, schedule, 7)
    (kept,) = (workdir / "evaluation").glob("*.npz")
    images = np.load(kept)["arr_0"]
    assert images.shape == (40, 8, 8, 1) and images.dtype == np.uint8
    shutil.rmtree(workdir / "evaluation")

    monkeypatch.setattr(scoring, "_PART", 16)
    sampler, parts = subject.model.sampler, []

    def make(params, key, indices, schedule, labels):
        parts.append(indices)
        if len(parts) == 3:
            raise KeyboardInterrupt
        return type(sampler).all_processes(
            sampler, params, key, indices, schedule, labels
        )

    monkeypatch.setattr(sampler, "all_processes", make)
    with pytest.raises(KeyboardInterrupt):
        scoring.Scorer(config, workdir, dataset)(subject, schedule, 7)
    (begun,) = (workdir / "evaluation").glob("*.uint8")
    assert begun.stat().st_size == 32 * 64
    with begun.open("ab") as file:
        file.write(b"half an image")
    assert scoring.Scorer(config, workdir, dataset)(subject, schedule, 7) == whole
    assert parts[2:] == [range(32, 40)] * 2
    (kept,) = (workdir / "evaluation").glob("*.npz")
    np.testing.assert_array_equal(np.load(kept)["arr_0"], images)
    assert not begun.exists()


def test_a_sample_that_is_not_finite_gets_no_score(run):
    config, workdir = run
    trained = model.load(workdir)
    trained.params = jax.tree.map(lambda p: p * np.nan, trained.params)
    scorer = scoring.Scorer(config, workdir, data.load(config.data))
    with pytest.raises(JcmError, match="sample 0 of broken, 1 step, seed 0 is not fin"):
        scorer(scoring.Subject.of("broken", trained), Schedule((80.0,)), 0)
    assert not (workdir / "evaluation" / "scores.jsonl").exists()


def test_half_a_line_does_not_count(run):
    config, workdir = run
    with config.unlocked():
        config.eval.seeds = (0,)
        config.teacher = "/nowhere"
    evaluate.evaluate(config, workdir)
    path = workdir / "evaluation" / "scores.jsonl"
    whole = _records(workdir)
    path.write_text(path.read_text()[:-30])
    evaluate.evaluate(config, workdir)
    lines = path.read_text().splitlines()
    assert json.loads(lines[0]) == whole[0]
    assert json.loads(lines[-1]) == whole[-1]


def test_each_new_checkpoint_is_evaluated_until_the_last(run, monkeypatch):
    config, workdir = run
    with config.unlocked():
        config.eval.watch, config.eval.scores = True, ()
    newest, seen = iter([None, 4, 4, 8]), []
    monkeypatch.setattr(evaluate, "_newest", lambda _: next(newest))
    monkeypatch.setattr(evaluate.time, "sleep", lambda _: None)
    monkeypatch.setattr(evaluate, "_evaluate_newest", lambda *_: seen.append(len(seen)))
    evaluate.evaluate(config, workdir)
    assert len(seen) == 2
    assert next(newest, "end") == "end"


def test_scores_while_training_change_nothing_else(tiny, teacher, student, tmp_path):
    config = tiny(
        "digits_cd",
        **{
            "teacher": str(teacher),
            "eval.scores": ("classifier",),
            "eval.num_images": 30,
            "eval.every_kimg": 0.064,  # four steps of 16 images
        },
    )
    train_lib.train(config, tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    scored = [line for line in map(json.loads, lines) if "eval/fd" in line]
    assert [line["step"] for line in scored] == [4, 8]
    ours, theirs = (model.load(place).params for place in (tmp_path, student[1]))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# --- search


@pytest.mark.parametrize("count", [1, 2, 3, 4, 17, 40])
def test_ternary_search_finds_the_least(count):
    for best in range(count):
        asked = []

        def value(i, best=best, asked=asked):
            asked.append(i)
            return abs(i - best) ** 1.5

        assert search.ternary(count, value) == best
        assert len(asked) == len(set(asked)) <= 2 * np.log(count + 1) / np.log(1.5) + 2


def test_search_reports_with_other_seeds(run):
    config, workdir = run
    with config.unlocked():
        config.search.score, config.search.points = "fd", 6
        config.search.steps = 3
    search.search(config, workdir)
    found = json.loads((workdir / "search.json").read_text())
    sigmas = found["sigmas"]
    assert len(sigmas) == 3 and sigmas[0] == 80 > sigmas[1] > sigmas[2] >= 0.002
    assert list(found["reported"]) == ["0", "5"]
    two_steps = {
        record["sigmas"][1]: record["scores"]["fd"]
        for record in _records(workdir)
        if len(record["sigmas"]) == 2 and record["seed"] == 1234
    }
    assert min(two_steps, key=two_steps.get) == sigmas[1]
    assert len(two_steps) > 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search.score": "fid"}, "is none of the scores .*: confident, fd"),
        ({"search.seed": 5}, "search.seed=5 is one of config.eval.seeds"),
        ({"search.points": 2, "search.steps": 4}, "too many for config.search.points"),
    ],
)
def test_a_search_that_cannot_be_is_refused(run, changes, message):
    config, workdir = run
    with config.unlocked():
        config.search.score = "fd"
        config.update_from_flattened_dict(changes)
    with pytest.raises(JcmError, match=message):
        search.search(config, workdir)


def test_search_is_for_consistency_models(run, teacher):
    with pytest.raises(JcmError, match="for consistency models"):
        search.search(run[0], teacher)
