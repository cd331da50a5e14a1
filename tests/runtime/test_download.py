"""Tests of downloads, from files and from a server on this machine."""

import functools
import http.server
import pathlib
import threading

import pytest

from jcm.runtime import cache, download
from jcm.runtime.errors import JcmError

_MD5 = "md5:9a0364b9e99bb480dd25e1f0284c8555"  # The hash of b"content".


def _fetch(source, target, expected=_MD5):
    url = source if isinstance(source, str) else source.as_uri()
    return download.fetch(url, target, expected, "help")


def test_only_a_file_with_the_published_hash_is_kept(tmp_path):
    source, target = tmp_path / "source.gz", tmp_path / "new" / "folder" / "target"
    source.write_bytes(b"content")
    with pytest.raises(JcmError, match="md5 9a0364b9.*, not 00: help"):
        _fetch(source, target, "md5:00")
    assert not list(target.parent.iterdir())
    assert _fetch(source, target) == target
    assert target.read_bytes() == b"content"
    assert list(target.parent.iterdir()) == [target]
    source.unlink()
    assert _fetch(source, target, "md5:unused") == target
    with pytest.raises(JcmError, match="cannot download .*: help"):
        _fetch(source, tmp_path / "other")


def test_the_first_digits_of_a_hash_are_enough(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    for expected in ("sha256:ed7002b4", _MD5, ""):
        download.check_digest(tmp_path / "file", expected, "it", "help")
    with pytest.raises(JcmError, match="it with sha256 ed7002b4.*, not ed7002b5: help"):
        download.check_digest(tmp_path / "file", "sha256:ed7002b5", "it", "help")


class _Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and only half of each file that has "short" in its name."""

    def log_message(self, *_):
        pass

    def copyfile(self, source, outputfile):
        content = source.read()
        outputfile.write(content[: len(content) // (1 + ("short" in self.path))])


@pytest.fixture
def address(tmp_path):
    handler = functools.partial(_Server, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_only_a_complete_download_is_kept(tmp_path, address):
    for name in ("whole", "short"):
        (tmp_path / name).write_bytes(b"content")
    assert _fetch(f"{address}/whole", tmp_path / "a").read_bytes() == b"content"
    for name, reason in {"short": "3 of 7 bytes|cannot", "missing": "404"}.items():
        with pytest.raises(JcmError, match=reason):
            _fetch(f"{address}/{name}", tmp_path / "b", "")
    assert not (tmp_path / "b").exists()
    assert not list(tmp_path.glob("*.part"))


def test_the_error_names_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JcmError, match="cannot write .*file/target .*: help"):
        _fetch(tmp_path / "file", tmp_path / "file" / "target")


def test_the_environment_chooses_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("JCM_CACHE", str(tmp_path))
    assert cache.folder("weights") == tmp_path / "weights"
    monkeypatch.setenv("JCM_CACHE", "")
    assert cache.folder("data") == pathlib.Path("~/.cache/jcm/data").expanduser()
