"""Tests of files that are written part by part."""

import pytest

from jcm.runtime import growing

_PARTS = [bytes([i]) * 12 for i in range(1, 5)]
_WHOLE = b"".join(_PARTS)


def _write(path, parts):
    with growing.opened(path, 4) as found:
        start = found.size
        for part in parts[start // 12 :]:
            found.add(part)
    return start


def test_a_file_is_resumed_where_it_ended(tmp_path):
    path = tmp_path / "new" / "x.uint8"
    assert _write(path, _PARTS[:2]) == 0
    with path.open("ab") as file, growing.journal_of(path).open("ab") as journal:
        file.write(b"part")  # of what a kill has interrupted
        journal.write(b'{"si')
    assert _write(path, _PARTS[:3]) == 24
    assert _write(path, _PARTS) == 36
    assert path.read_bytes() == _WHOLE
    growing.delete(path)
    assert not list(path.parent.iterdir())


def _zero(path):
    path.write_bytes(_WHOLE[:17] + bytes(20) + _WHOLE[37:])


def _cut(path):
    path.write_bytes(_WHOLE[:25])


def _replace(path):
    path.write_bytes(bytes(len(_WHOLE)))


def _add_wrong_lines(path):
    lines = growing.journal_of(path).read_bytes().splitlines()
    wrong = b'{"size": 48, "sha256": "0"}\n\xff\n[[[\n{"size": -4, "sha256": "x"}\n'
    odd = b'{"size": 3, "sha256": "x"}\n{"size": 99999, "sha256": "x"}\n'
    growing.journal_of(path).write_bytes(wrong + b"\n".join(lines[:3]) + b"\n" + odd)


@pytest.mark.parametrize(
    ("damage", "kept", "is_reported"),
    [
        (_zero, 12, True),
        (_cut, 24, True),
        (_replace, 0, True),
        (lambda path: growing.journal_of(path).unlink(), 0, False),
        (_add_wrong_lines, 36, True),
    ],
)
def test_only_what_is_as_written_is_kept(tmp_path, caplog, damage, kept, is_reported):
    path = tmp_path / "x.uint8"
    _write(path, _PARTS)
    damage(path)
    assert _write(path, _PARTS) == kept
    assert (f"{path} is damaged" in caplog.text) == is_reported
    assert path.read_bytes() == _WHOLE
    assert _write(path, _PARTS) == 48
