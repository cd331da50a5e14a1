"""Tests of reading JSON: whatever is wrong ends in a line that names file and field."""

import os

import msgspec
import pytest
from absl import logging

from jcm.runtime import budget, json_files
from jcm.runtime.errors import JcmError


class _Kind(msgspec.Struct, forbid_unknown_fields=True):
    step: json_files.Count
    names: list[str] = []


def test_what_is_of_another_type_is_named(tmp_path):
    path = tmp_path / "file.json"
    for content, message in (
        ('{"step": 1, "names": ["a", null]}', r"\(names\[1\]: Expected `str`, got `nu"),
        ('{"step": -1}', r"\(step: Expected `int` >= 0\)"),
        ('{"step": true}', r"\(step: Expected `int`, got `bool`\)"),
        (f'{{"step": 1{"0" * 400}}}', r"\(step: Expected `int` <= "),
        (f'{{"step": {"9" * 5000}}}', r"\(step: .*out of range\)"),
        ('{"other": 1, "step": 1}', "unknown field `other`"),
        ("[]", r"\(Expected `object`, got `array`\)"),
        ('{"names": ' + "[" * 100_000, "file.json is damaged"),
        ('{"\x1b": 1}', "file.json is damaged"),
        (b'{"step": 1, "names": ["\xff"]}', "file.json is damaged"),
        (b'{"step": 1, "names": ["\\ud800"]}', "file.json is damaged"),
        ("", "file.json is damaged"),
    ):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(JcmError, match=message) as raised:
            json_files.read(path, _Kind, "restore it")
        text = str(raised.value)
        assert text.startswith(f"{path} is damaged") and text.endswith(": restore it")
        assert text.isprintable()


def test_what_is_no_file_of_a_fair_size_is_refused(tmp_path):
    path = tmp_path / "file.json"
    for make, message in (
        (lambda: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda: os.mkfifo(path), "not a regular file"),
        (path.mkdir, "not a regular file"),
        (lambda: path.symlink_to(path), "cannot read .*file.json"),
        (lambda: path.touch() or os.truncate(path, budget.JSON_BYTES + 1), "8,388,609"),
    ):
        make()
        with pytest.raises(JcmError, match=message):
            json_files.read(path, _Kind, "restore it")
        with pytest.raises(JcmError, match=message):
            list(json_files.lines(path, _Kind, budget.JSON_BYTES))
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError):
        json_files.read(path, _Kind, "restore it")


def test_a_damaged_line_is_logged_and_the_others_are_read(tmp_path, monkeypatch):
    logged = []
    monkeypatch.setattr(
        logging, "warning", lambda text, *args: logged.append(text % args)
    )
    path = tmp_path / "lines.jsonl"
    monkeypatch.setattr(budget, "JSON_BYTES", 100)
    long = '{"step": 1, "names": ["' + "x" * 250 + '"]}'
    path.write_text(f'{{"step": 3}}\n{{"step": null}}\n{long}\n{{"step": 4}}\n{{"step')
    found = list(json_files.lines(path, _Kind))
    assert [each and each.step for each in found] == [3, None, None, 4, None]
    assert logged == [
        f"{path}, line 2, is damaged (step: Expected `int`, got `null`): the line is"
        " not used, nor are 2 others"
    ]
