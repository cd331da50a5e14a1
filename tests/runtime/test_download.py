"""Tests of downloads, from files and from a server on this machine."""

import contextlib
import hashlib
import http.server
import threading
import time
import urllib.request

import pytest

from jcm.runtime import download
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
    assert _fetch(source, target) == target
    target.write_bytes(b"planted")
    message = f"{target} is there, but with md5 08297c07.*, not 9a03.*: delete it, or h"
    with pytest.raises(JcmError, match=message):
        _fetch(source, target)
    with pytest.raises(JcmError, match="cannot download .*: help"):
        _fetch(source, tmp_path / "other")


def test_the_first_digits_of_a_hash_are_enough(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    for expected in ("sha256:ed7002b4", _MD5, ""):
        download.check_digest(tmp_path / "file", expected, "it", "help")
    with pytest.raises(JcmError, match="it with sha256 ed7002b4.*, not ed7002b5: help"):
        download.check_digest(tmp_path / "file", "sha256:ed7002b5", "it", "help")


class _Server(http.server.BaseHTTPRequestHandler):
    """Sends b"content" in the way that the address names."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        way = self.path.removeprefix("/")
        if way == "missing":
            self.send_error(404)
            return
        self.send_response(200)
        lengths = {"whole": "7", "short": "14", "odd": "-5", "huge": "99999999999"}
        if way in lengths:
            self.send_header("Content-Length", lengths[way])
        self.end_headers()
        self.wfile.write(b"content")
        with contextlib.suppress(OSError):  # until the client has enough
            while way in ("endless", "slow"):
                self.wfile.write(bytes(10) if way == "slow" else bytes(100_000))
                time.sleep(0.05 if way == "slow" else 0)


@pytest.fixture
def address():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("short", "7 of 14 bytes|cannot"),
        ("missing", "404"),
        ("huge", "99,999,999,999 bytes are announced"),
        ("endless", "more than 1,000,000 bytes"),
        ("slow", "fewer than 65,536 bytes in 0 s"),
    ],
)
def test_only_a_complete_download_is_kept(tmp_path, address, monkeypatch, way, reason):
    monkeypatch.setattr(download, "_MOST_BYTES", 1_000_000)
    monkeypatch.setattr(download, "_PERIOD_S", 0.1)
    for fine in ("whole", "odd"):
        found = _fetch(f"{address}/{fine}", tmp_path / fine)
        assert found.read_bytes() == b"content"
    with pytest.raises(JcmError, match=f"{reason}.*: .*help") as error:
        _fetch(f"{address}/{way}", tmp_path / "b", "")
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd", "whole"]


def test_a_redirect_must_stay_encrypted():
    def redirected(old, new):
        request = urllib.request.Request(old)
        return download._Redirects().redirect_request(
            request, None, 302, "Found", {}, new
        )

    found = redirected("https://a.org/x", "https://b.org/x")
    assert found and found.full_url == "https://b.org/x"
    for new in ("http://a.org/x", "ftp://a.org/x"):
        with pytest.raises(ValueError, match="redirects to .* which is not encrypted"):
            redirected("https://a.org/x", new)


def test_a_download_has_the_usual_permissions_and_its_hash(tmp_path, caplog):
    source, target = tmp_path / "source", tmp_path / "cache" / "target"
    source.write_bytes(b"content")
    (tmp_path / "usual").touch()
    _fetch(source, target, "")
    usual = (tmp_path / "usual").stat().st_mode
    assert {path.stat().st_mode for path in target.parent.iterdir()} == {usual}
    record = target.parent / "target.sha256"
    digest = hashlib.sha256(b"content").hexdigest()
    assert record.read_text() == f"{digest}  target\n"


def test_the_error_names_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        JcmError, match="cannot write .*file/target .*: .*is a file and"
    ):
        _fetch(tmp_path / "file", tmp_path / "file" / "target")
