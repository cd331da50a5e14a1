"""Tests of files without a published hash, and of records of hashes."""

import os
import subprocess

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


def test_a_changed_byte_is_damage_and_a_changed_time_a_new_file(file, caplog):
    caplog.set_level("INFO", logger="absl")
    _read(file)
    assert f"first reading of {file}" in caplog.text
    caplog.clear()
    _read(file)
    assert not caplog.text
    _flip(file)
    for _ in range(2):
        with pytest.raises(JcmError, match=f"{file} is damaged: .* `touch {file}`"):
            _read(file)
    os.utime(file)
    _read(file)
    assert f"{file} was replaced since it was last read" in caplog.text
    caplog.clear()
    _read(file)
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
    _flip(file)
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


def _download(path):
    with first_read.comparing_download(path) as digest:
        pass
    return digest()


def test_a_download_that_changes_is_refused(file, caplog):
    caplog.set_level("INFO", logger="absl")
    digest = _download(file)
    assert "was not downloaded by jcm, and no hash was published" in caplog.text
    assert hashes.sha256(file) == digest == _download(file)
    _flip(file)
    os.utime(file)
    record = file.with_name("model.bin.sha256")
    with pytest.raises(JcmError, match=f"has changed .*delete {file} .*{record} if"):
        _download(file)
    record.write_text("nothing")
    with pytest.raises(JcmError, match="line 1, is damaged: delete"):
        _download(file)
    record.unlink()
    assert _download(file) != digest


def test_a_record_of_a_folder_is_one_of_sha256sum(file):
    folder = file.parent
    (folder / "sub").mkdir()
    (folder / "sub" / "other").write_text("x")
    names = ["model.bin", "sub/other"]
    record = folder / hashes.NAME
    hashes.write(record, {name: hashes.sha256(folder / name) for name in names})
    subprocess.run(["sha256sum", "-c", "--strict", record], cwd=folder, check=True)
    hashes.check(record, names, "copy it again")
    with pytest.raises(JcmError, match="does not list .*none: copy it again"):
        hashes.check(record, ["none"], "copy it again")
    _flip(file)
    with pytest.raises(JcmError, match=f"{file} is damaged .*SHA256SUMS.: copy it ag"):
        hashes.check(record, names, "copy it again")
    hashes.check(record, names[1:], "copy it again")
