"""Tests of temporary files: those of killed programs go, those in use stay."""

import os
import signal
import subprocess
import sys
import tempfile

from jcm.runtime import cache, files, leftovers


def _files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_that_a_kill_has_left_is_removed_and_one_in_use_is_not(tmp_path):
    program = """
import os, pathlib, signal, sys
from jcm.runtime import files
with files.replacing(pathlib.Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print(flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "scores.md")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as writer:
        writer.stdout.readline()
        before = _files(tmp_path)
        assert len(before) == 1 and before[0].startswith(".scores.md.")
        leftovers.remove(tmp_path)
        assert _files(tmp_path) == before
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert _files(tmp_path) == before
    (tmp_path / ".hidden").touch()
    leftovers.remove(tmp_path)
    assert _files(tmp_path) == [".hidden"]


def test_what_others_have_made_stays(tmp_path):
    name, other = leftovers.temporary_name("x"), ".x.jcm-0123456789abcdef.tmp"
    own = [".x.tmp", "x.tmp", ".x.0123abcd.tmp", f"{name}.tmp", name[1:]]
    for each in own:
        (tmp_path / each).touch()
        os.utime(tmp_path / each, (0, 0))
    for each in (".mine.tmp", leftovers.temporary_name("folder")):
        (tmp_path / each).mkdir()
        own.append(each)
    (tmp_path / name).touch()
    (tmp_path / other).touch()  # of another machine, which may be writing it
    leftovers.remove(tmp_path)
    assert _files(tmp_path) == sorted([*own, other])
    os.utime(tmp_path / other, (0, 0))
    leftovers.remove(tmp_path)
    assert _files(tmp_path) == sorted(own)


def test_a_write_waits_for_no_other_write(tmp_path):
    with (
        files.replacing(tmp_path / "a") as one,
        files.replacing(tmp_path / "a") as other,
    ):
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a").read_text() == "one" and _files(tmp_path) == ["a"]


def test_temporary_folders_of_killed_programs_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with leftovers.temporary_folder("evaluate") as left:
        machine = left.name.split("_")[2]
    left.mkdir()
    (left / "file").touch()
    kept = [f"jcm_unsaved_{machine}_abcdefgh", "jcm_evaluate_01234567_abcdefgh"]
    kept += ["jcm_evaluate_mine", f"jcm_evaluate_{machine}"]
    for name in kept:
        (tmp_path / name).mkdir()
    with leftovers.temporary_folder("evaluate") as first:
        with leftovers.temporary_folder("evaluate") as second:
            assert _files(tmp_path) == sorted([first.name, second.name, *kept])
    assert _files(tmp_path) == sorted(kept)


def test_a_file_with_the_same_content_is_not_written(tmp_path):
    path = tmp_path / "scores.json"
    assert files.write_json(path, {"fd": 1.0})
    before = os.stat(path)
    assert not files.write_json(path, {"fd": 1.0})
    assert os.stat(path).st_ino == before.st_ino
    assert files.write_json(path, {"fd": 2.0})


def test_the_cache_is_tidied_once(tmp_path, monkeypatch):
    monkeypatch.setenv("JCM_CACHE", str(tmp_path))
    name = leftovers.temporary_name("weights.pt")
    for folder in (tmp_path / "weights", tmp_path / "weights" / "sub"):
        folder.mkdir()
        (folder / name).touch()
    folder = cache.folder("weights")
    assert _files(folder) == ["sub"] and not _files(folder / "sub")
    (folder / name).touch()
    assert _files(cache.folder("weights")) == sorted([name, "sub"])
