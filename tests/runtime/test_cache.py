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


def test_the_folders_of_a_reported_cache_are_not_reported(
    monkeypatch, tmp_path, caplog
):
    monkeypatch.setenv("JCM_CACHE", str(tmp_path))
    for name in ("weights", "data"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o777)
    tmp_path.chmod(0o777)
    for name in ("weights", "data"):
        cache.folder(name)
    assert caplog.text.count("other users can write") == 1
    assert f"other users can write {tmp_path}," in caplog.text


@pytest.mark.parametrize(
    ("user", "owner", "mode", "is_reported"),
    [
        (1000, 1001, 0o755, True),
        (1000, 0, 0o755, False),
        (0, 1000, 0o755, False),  # root in a container with a user's folder
        (0, 1000, 0o777, True),
    ],
)
def test_a_cache_of_another_user_is_reported(
    monkeypatch, tmp_path, user, owner, mode, is_reported
):
    monkeypatch.setattr(cache.os, "getuid", lambda: user)
    found = list(tmp_path.stat())
    found[0], found[4], found[5] = found[0] & ~0o777 | mode, owner, owner
    assert cache._others_can_write(cache.os.stat_result(found)) == is_reported
