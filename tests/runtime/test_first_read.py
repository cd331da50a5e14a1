"""Tests of files without a published hash, and of records of hashes."""

import errno
import hashlib
import json
import os
import pathlib
import subprocess

import msgspec
import pytest

from jcm.runtime import first_read, hashes
from jcm.runtime.errors import JcmError


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("JCM_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "model.bin"
    path.write_bytes(bytes(10_000))
    return path


def _read(*paths):
    with first_read.comparing(paths):
        pass


def _flip(path):
    """Changes a byte, and neither the size nor the time of the file."""
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _damage(path):
    """Changes a byte as a disk does, so that the file has the identity of before."""
    old = hashes.identity(path)
    _flip(path)
    record = first_read._place(path)
    content = json.loads(record.read_text())
    assert content["identity"] == msgspec.to_builtins(old)
    content["identity"] = msgspec.to_builtins(hashes.identity(path))
    record.write_text(json.dumps(content))


def test_a_changed_byte_is_damage_and_another_file_is_not(file, caplog):
    caplog.set_level("INFO", logger="absl")
    _read(file)
    assert f"first reading of {file}" in caplog.text
    caplog.clear()
    _read(file)
    assert not caplog.text
    _damage(file)
    record = first_read._place(file)
    for _ in range(2):
        with pytest.raises(
            JcmError, match=f"{file} is damaged: .*, or delete {record}"
        ):
            _read(file)
    record.unlink()
    _read(file)
    caplog.clear()
    # As `cp -p` does it: another content with the same size and time.
    _flip(file)
    _read(file)
    assert f"{file} was replaced since it was last read" in caplog.text
    caplog.clear()
    _read(file)
    os.utime(file)
    _read(file)
    assert not caplog.text
    file.write_bytes(bytes(9_000))
    _read(file)
    assert "was replaced" in caplog.text


def test_a_damaged_record_or_a_cache_that_cannot_be_written_is_no_error(
    file, tmp_path, caplog
):
    _read(file)
    (record,) = (tmp_path / "cache" / "first_read").iterdir()
    record.write_text("[")
    _read(file)
    _damage(file)
    with pytest.raises(JcmError, match="is damaged"):
        _read(file)
    record.unlink()
    record.parent.rmdir()
    record.parent.write_text("not a folder")
    _read(file)
    assert "damage of files will not be noticed: cannot write" in caplog.text


def test_an_error_of_the_block_comes_first(file, tmp_path):
    with pytest.raises(KeyError), first_read.comparing([file, tmp_path / "none"]):
        raise KeyError
    assert not (tmp_path / "cache").exists()


def test_parts_of_a_file_are_compared_as_they_are_read(file):
    block = bytes(2**18)

    def read(name, *blocks):
        first_read._compared.clear()  # as in another process
        with first_read.comparing_blocks(file, [name]) as seen:
            for content in blocks:
                seen(content)

    for _ in range(2):
        read("a", b"12", b"3", block, b"45")
        read("b", b"678")
    (digest, _) = json.loads(first_read._place(file).read_text())["sha256"].values()
    assert digest == hashlib.sha256(b"123" + block + b"45").hexdigest()
    with pytest.raises(JcmError, match=f"{file} is damaged"):
        read("a", b"12", b"3", block[1:], b"45")
    read("a", b"12", b"3", block, b"45")
    with first_read.comparing_blocks(file, ["a"]) as seen:
        seen(b"another, not compared a second time")
    with pytest.raises(KeyError), first_read.comparing_blocks(file, ["c"]) as seen:
        seen(block)
        raise KeyError


def test_a_file_is_hashed_once_in_a_process(file, monkeypatch):
    found = []
    digest_of = hashes.digest_of
    monkeypatch.setattr(
        hashes, "digest_of", lambda *args: found.append(args) or digest_of(*args)
    )
    for _ in range(3):
        _read(file)
    assert len(found) == 1
    _flip(file)
    _read(file)
    assert len(found) == 2


def test_a_file_that_cannot_be_read_is_an_error_of_one_line(file, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    message = rf"cannot read {file} \(Input/output error\): "
    with monkeypatch.context() as patch, pytest.raises(JcmError, match=message):
        patch.setattr(pathlib.Path, "open", fail)
        _read(file)
    file.unlink()
    with pytest.raises(JcmError, match=rf"cannot read {file} \(No such file"):
        hashes.known(file)


def _download(path, **options):
    with first_read.comparing_download(path, **options) as download:
        pass
    return download()


def test_a_download_that_changes_is_refused(file, caplog):
    caplog.set_level("INFO", logger="absl")
    digest = hashes.sha256(file)
    for whole in (True, False):
        assert _download(file, whole=whole) == (digest, False)
    assert "was not downloaded by jcm, and no hash was published" in caplog.text
    _damage(file)
    with pytest.raises(JcmError, match=f"{file} is damaged"):
        _download(file)
    _flip(file)
    hashes.write(hashes.beside(file), {file.name: digest})
    for whole in (True, False, False):
        assert _download(file, whole=whole) == (digest, True)
    _flip(file)
    os.utime(file)
    record = file.with_name("model.bin.sha256")
    with pytest.raises(JcmError, match=f"has changed .*delete {file} .*{record} if"):
        _download(file)
    record.write_text("nothing")
    with pytest.raises(JcmError, match="line 1, is damaged: delete"):
        _download(file)
    record.unlink()
    sha256, fetched = _download(file)
    assert sha256 != digest and not fetched


def test_a_record_of_a_folder_is_one_of_sha256sum(file):
    folder = file.parent
    (folder / "sub").mkdir()
    (folder / "sub" / "other").write_text("x")
    names = ["model.bin", "sub/other"]
    record = folder / hashes.NAME
    hashes.write(record, {name: hashes.sha256(folder / name) for name in names})
    subprocess.run(["sha256sum", "-c", "--strict", record], cwd=folder, check=True)

    def compare(names):
        with hashes.comparing(record, names, "copy it again"):
            pass

    compare(names)
    with pytest.raises(JcmError, match="does not list .*none: copy it again"):
        compare(["none"])
    _flip(file)
    with pytest.raises(JcmError, match=f"{file} is damaged .*SHA256SUMS.: copy it ag"):
        compare(names)
    compare(names[1:])
