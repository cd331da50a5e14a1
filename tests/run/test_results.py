"""Tests of keeping results of other settings."""

import json

import pytest

from jcm.run import results
from jcm.runtime.errors import JcmError


def _write(workdir, settings, text):
    results.make_room(workdir, "search", ["search.json"], settings)
    (workdir / "search.json").write_text(text)


def test_results_of_other_settings_are_kept(tmp_path):
    (tmp_path / "search.json").write_text("of unknown settings")
    for settings, text in (
        ({"steps": 2, "seeds": (0, 1)}, "2 steps"),
        ({"steps": 2, "seeds": (0, 1)}, "2 steps again"),
        ({"steps": 3}, "3 steps"),
    ):
        _write(tmp_path, settings, text)
    assert (tmp_path / "search.json").read_text() == "3 steps"
    assert json.loads((tmp_path / "results.json").read_text())["search"] == {"steps": 3}
    earlier = {path.name: path for path in (tmp_path / "earlier").iterdir()}
    assert sorted(earlier) == ["1", "2"]
    assert (earlier["1"] / "search.json").read_text() == "of unknown settings"
    assert (earlier["2"] / "search.json").read_text() == "2 steps again"
    settings = json.loads((earlier["2"] / "settings.json").read_text())
    assert settings == {"steps": 2, "seeds": [0, 1]}


def test_commands_do_not_disturb_each_other(tmp_path):
    _write(tmp_path, {"steps": 2}, "found")
    results.make_room(tmp_path, "evaluate", ["scores.json", "scores.md"], {"seeds": 1})
    _write(tmp_path, {"steps": 2}, "found")
    assert not (tmp_path / "earlier").exists()


@pytest.mark.parametrize("content", ["[]", "null", '{"search": [1]}', "[" * 10**5, ""])
def test_a_damaged_record_is_refused(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(JcmError, match=r"results.json is damaged \(.*\): delete it"):
        _write(tmp_path, {"steps": 2}, "found")
    assert not (tmp_path / "search.json").exists()
