"""Tests of the search for noise levels."""

import json

import numpy as np
import pytest
from recorded import recorded

from jcm.commands import search
from jcm.metrics import scores
from jcm.runtime.errors import JcmError


@pytest.mark.parametrize("count", [1, 2, 3, 4, 17, 40])
def test_ternary_search_finds_the_minimum(count):
    for best in range(count):
        asked = []

        def value(i, best=best, asked=asked):
            asked.append(i)
            return abs(i - best) ** 1.5

        assert search.ternary(count, value) == best
        assert len(asked) == len(set(asked)) <= 2 * np.log(count + 1) / np.log(1.5) + 2


def test_search_reports_the_scores_of_other_seeds(scored, caplog):
    config, workdir = scored
    with config.unlocked():  # The first of `eval.scores` decides what is optimised.
        config.search.points, config.search.steps = 6, 3
    with caplog.at_level("INFO"):
        search.search(config, workdir)
    assert "searching by fd of the score classifier, lower is better" in caplog.text
    found = json.loads((workdir / "search.json").read_text())
    made_by = json.loads((workdir / "results.json").read_text())
    assert made_by["search"]["search"]["steps"] == 3
    sigmas = found["sigmas"]
    assert len(sigmas) == 3 and sigmas[0] == 80 > sigmas[1] > sigmas[2] >= 0.002
    assert list(found["reported"]) == ["0", "5"]
    two_steps = {
        record["sigmas"][1]: record["scores"]["fd"]
        for record in recorded(workdir)
        if len(record["sigmas"]) == 2 and record["seed"] == 1234
    }
    assert min(two_steps, key=two_steps.get) == sigmas[1]
    assert len(two_steps) > 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search.score": "fidd"}, "no score gives 'fidd': use one of confident, fd"),
        ({"search.score": "as_asked"}, "needs a class-conditional model"),
        ({"search.seed": 5}, "search.seed=5 is one of config.eval.seeds"),
        (
            {"search.score": "", "eval.scores": ()},
            "name the column to optimise, such as config.search.score=fid",
        ),
        ({"search.points": 2, "search.steps": 4}, "too large for config.search.points"),
    ],
)
def test_an_impossible_search_raises(scored, changes, message):
    config, workdir = scored
    with config.unlocked():
        config.search.score = "fd"
        config.update_from_flattened_dict(changes)
    with pytest.raises(JcmError, match=message):
        search.search(config, workdir)


def test_search_maximises_a_score_that_is_better_when_higher(scored, monkeypatch):
    config, workdir = scored
    monkeypatch.setitem(scores._CLASSIFIER_COLUMNS, "fd", True)
    with config.unlocked():
        config.search.score, config.search.points = "fd", 6
    search.search(config, workdir)
    found = json.loads((workdir / "search.json").read_text())
    looked_at = {
        record["sigmas"][1]: record["scores"]["fd"]
        for record in recorded(workdir)
        if record["seed"] == 1234
    }
    assert looked_at[found["sigmas"][1]] == max(looked_at.values())
    assert max(looked_at.values()) > min(looked_at.values())


def test_search_is_for_consistency_models(scored, teacher):
    with pytest.raises(JcmError, match="for consistency models"):
        search.search(scored[0], teacher)
