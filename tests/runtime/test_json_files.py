"""JSON files that are read: their types, sizes and kinds of file."""

import os

import msgspec
import pytest

from jcm.runtime import json_files
from jcm.runtime.errors import JcmError


class _Known(msgspec.Struct, forbid_unknown_fields=True):
    step: int
    scores: dict[str, float]


class _Line(msgspec.Struct):
    a: int


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "truncated"),
        (b"\xff", "malformed"),
        (b'{"step": null, "scores": {}}', "Expected `int`, got `null` - at `$.step`"),
        (b'{"step": 1, "scores": {"fd": "x"}}', "Expected `float`, got `str`"),
        (b'{"step": 1}', "missing required field `scores`"),
        (b'{"step": 1, "scores": {}, "other": 1}', "unknown field `other`"),
        (b'{"step": 1' + b"0" * 5000 + b', "scores": {}}', "out of range"),
        (b'{"scores": ' + b'{"a": ' * 100_000, "Expected `float`, got `object`"),
    ],
)
def test_a_fault_names_file_and_field(tmp_path, content, reason):
    path = tmp_path / "known.json"
    path.write_bytes(content)
    with pytest.raises(JcmError) as caught:
        json_files.read(path, _Known, "restore it")
    assert str(caught.value).startswith(f"{path} is damaged (")
    assert reason in str(caught.value)
    assert str(caught.value).endswith("): restore it")


def test_a_good_file(tmp_path):
    path = tmp_path / "known.json"
    path.write_text('{"step": 3, "scores": {"fd": 1}}')
    assert json_files.read(path, _Known, "") == _Known(3, {"fd": 1.0})


def test_a_line_without_its_end_is_left_out(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": 3}')
    assert json_files.read_lines(path, _Line, "") == [_Line(1), _Line(2)]
    path.write_text('{"a": 1}\n{"a": null}\n')
    with pytest.raises(JcmError, match=r"lines.jsonl, line 2, is damaged .*null"):
        json_files.read_lines(path, _Line, "restore it")


def test_only_regular_files_of_a_bounded_size_are_opened(tmp_path):
    pipe, link, large = (tmp_path / name for name in ("pipe", "link", "large"))
    os.mkfifo(pipe)
    link.symlink_to("/dev/zero")
    with large.open("wb") as file:
        file.truncate(2**33)
    for path in (pipe, link):
        with pytest.raises(JcmError, match="is not a regular file"):
            json_files.read(path, _Known, "")
    with pytest.raises(JcmError, match="8,589,934,592 bytes, and at most 8,388,608"):
        json_files.read(large, _Known, "")
