"""Tests of the cache: where it is, and who can write it."""

import pathlib

import pytest

from jcm.runtime import cache


def test_the_environment_chooses_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("JCM_CACHE", str(tmp_path))
    assert cache.folder("weights") == tmp_path / "weights"
    monkeypatch.setenv("JCM_CACHE", "")
    assert cache.folder("data") == pathlib.Path("~/.cache/jcm/data").expanduser()


@pytest.mark.parametrize(
    ("mode", "group", "is_reported"),
    [(0o755, 7, False), (0o775, None, False), (0o775, 7, True), (0o777, None, True)],
)
def test_a_cache_that_others_can_write_is_reported_once(
    monkeypatch, tmp_path, caplog, mode, group, is_reported
):
    monkeypatch.setenv("JCM_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "weights"
    folder.mkdir(parents=True)
    stat = folder.stat()
    monkeypatch.setattr(cache.os, "getuid", lambda: stat.st_uid)
    found = list(stat)
    found[0] = (found[0] & ~0o777) | mode
    found[5] = stat.st_uid if group is None else group + stat.st_uid
    changed = cache.os.stat_result(found)
    assert cache._others_can_write(changed) == is_reported
    folder.chmod(0o777 if is_reported else 0o755)
    cache.folder("weights")
    assert (f"other users can write {folder}" in caplog.text) == is_reported
    caplog.clear()
    cache.folder("weights")
    assert not caplog.text


def test_a_cache_of_another_user_is_reported(monkeypatch, tmp_path):
    stat = tmp_path.stat()
    monkeypatch.setattr(cache.os, "getuid", lambda: stat.st_uid + 1)
    assert cache._others_can_write(stat) == (stat.st_uid != 0)
