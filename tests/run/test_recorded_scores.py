"""Tests of the file of scores."""

import json

import cost
import pytest
from absl import logging

from jcm.model import card
from jcm.run import recorded_scores
from jcm.runtime.errors import JcmError

_SCORE = {
    "model": "consistency",
    "step": 8,
    "weights": "0f",
    "samples": "1 step",
    "sigmas": [80.0],
    "solver": "consistency",
    "labels": [0, "cat"],
    "seed": 0,
    "num_images": 80,
    "by": {"fid": {"network": "0"}},
    "scores": {"fid": 3.5},
}


def test_only_damaged_lines_are_left_out(tmp_path, monkeypatch):
    logged = []
    monkeypatch.setattr(
        logging, "warning", lambda text, *args: logged.append(text % args)
    )
    changes = [
        {"scores": None},
        {"scores": {"fid": None}},
        {"scores": {"fid": "<b>"}},
        {"num_images": "80"},
        {"num_images": -1},
        {"samples": []},
        {"step": 10**400},
        {"weights": 5},
        {"sigmas": [None]},
        {"by": None},
        {"by": {"fid": [{}, {}]}},
        {"by": {str(i): {} for i in range(100)}},
    ]
    wrong = [json.dumps(_SCORE | change) for change in changes]
    wrong += ["5", "null", "[]", "{}", "[" * 10**5, '{"model": "cons']
    path = tmp_path / recorded_scores.FILE
    path.parent.mkdir()
    good = json.dumps(_SCORE)
    path.write_text("\n".join([good, *wrong, good]) + "\n")
    found = recorded_scores.read(tmp_path)
    assert found == [_SCORE, _SCORE]
    (line,) = logged
    assert f"{path}, line 2, is damaged (scores: Expected `object`, got" in line
    assert line.endswith(f", nor are {len(wrong) - 1} others")
    assert card.in_words(found) == "1 step: fid 3.5 of 80 images"


def test_a_file_of_a_fair_size_is_read(tmp_path):
    path = tmp_path / recorded_scores.FILE
    path.parent.mkdir()
    start, end = '{"by": {"a": [', "{}]}}\n"
    path.write_text(2 * (start + "{}," * (8 * 2**20 // 3 - 20) + end))
    with cost.limited(path):
        assert recorded_scores.read(tmp_path) == []
    path.write_bytes(bytes(16 * 2**20 + 1))
    with pytest.raises(JcmError, match=r"scores.jsonl has .* are read: move it away"):
        recorded_scores.read(tmp_path)


def test_another_file_in_its_place_is_refused(tmp_path):
    assert recorded_scores.read(tmp_path) == []
    (tmp_path / "evaluation").mkdir()
    (tmp_path / recorded_scores.FILE).symlink_to("/dev/zero")
    with pytest.raises(JcmError, match=r"scores.jsonl is not a regular file"):
        recorded_scores.read(tmp_path)
