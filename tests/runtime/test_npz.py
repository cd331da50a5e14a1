"""Tests of files of arrays: hostile and damaged ones are refused with one line."""

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest

from jcm.runtime import npz
from jcm.runtime.errors import JcmError

_EXPECTED = {
    "mu": npz.Array(npz.FLOATS, ("d",)),
    "sigma": npz.Array(npz.FLOATS, ("d", "d")),
    "count": npz.Array(npz.WHOLE, (), optional=True),
}
_MU, _SIGMA = np.arange(3.0), np.arange(9.0).reshape(3, 3)


def _read(path):
    return npz.read(path, _EXPECTED, "name another file")


def _npy(header, content=b"", version=(1, 0)):
    """Returns an .npy file with any header."""
    length = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + length + header + content


def _header(shape, dtype="<f8"):
    fields = {"descr": dtype, "fortran_order": False, "shape": shape}
    return f"{fields!r}\n".encode()


def _good(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_in_any_order_of_axes_and_bytes(tmp_path, save):
    save(
        tmp_path / "x.npz",
        **{"mu": _MU.astype(">f4"), "sigma": np.asfortranarray(_SIGMA)},
        **{"count": np.int64(7), "other": np.array(["text"])},
    )
    found = _read(tmp_path / "x.npz")
    assert list(found) == ["mu", "sigma", "count"] and found["count"] == 7
    np.testing.assert_array_equal(found["mu"], _MU)
    np.testing.assert_array_equal(found["sigma"], _SIGMA)
    assert found["mu"].dtype == np.float32 and found["mu"].dtype.isnative


def test_statistics_that_python_2_wrote_are_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        header = _header("SHAPE").replace(b"'SHAPE'", b"(3L,)")
        file.writestr("mu.npy", _npy(header, _MU.tobytes()))
        file.writestr("sigma.npy", _good(_SIGMA))
    np.testing.assert_array_equal(_read(tmp_path / "x.npz")["mu"], _MU)


@pytest.mark.parametrize(
    ("mu", "reason"),
    [
        (
            _npy(_header((10**13,)), b"12345678"),
            "not have the bytes of an array of shape",
        ),
        (_npy(_header((3, 3)), bytes(72)), r"shape \(3, 3\), and not \(d\)"),
        (_npy(_header((4,)), bytes(32)), r"sigma has the shape .*\(d, d\) with d=4"),
        (_npy(_header((0,))), r"shape \(0,\)"),
        (_npy(_header((-3,))), "mu"),
        (_npy(_header((1,) * 3000)), "has the shape"),
        (_good(np.array(["a", "b", "c"])), "mu is of type str"),
        (_good(np.zeros(3, complex)), "mu is of type complex128, and not float16"),
        (_npy(_header((3,), "|O"), b"cos\nsystem\n"), "mu is of type object"),
        (_npy(_header((3,), [("a", "<f8")]), bytes(24)), "mu is of type void"),
        (_npy(_header((3,)), _MU.tobytes(), (2, 0))[:9], "expected 4 bytes"),
        (_npy(_header((3,)) + b" " * 60_000, bytes(24)), "EOF"),
        (_npy(_header((3,)) + b" " * 20_000, bytes(24), (2, 0)), "EOF"),
        (_npy(_header((3,)), bytes(24), (3, 0)), "version .3, 0."),
        (_npy(b"{'descr': " + b"[" * 5000, b""), "EOF"),
        (b"not an array", "magic"),
        (b"", "magic"),
        (None, "it has no mu"),
    ],
    ids=range(18),
)
def test_an_array_that_does_not_fit_is_one_line(tmp_path, mu, reason):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as file:
        if mu is not None:
            file.writestr("mu.npy", mu)
        file.writestr("sigma.npy", _good(_SIGMA))
    with pytest.raises(JcmError, match=rf"x.npz cannot be .*{reason}.*: name an") as e:
        _read(path)
    assert len(str(e.value)) < 500


def _with_flag(content):  # of an encrypted member
    for signature, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = content.index(signature) + place
        content = content[:at] + b"\1" + content[at + 1 :]
    return content


def _many_members(content):
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a") as archive:
        for i in range(12_000):
            archive.writestr(f"{i:0400d}", b"")
    return file.getvalue()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[:200], "not a zip file"),
        (lambda content: content.replace(_MU.tobytes(), bytes(24)), "Bad CRC-32"),
        (_with_flag, "mu is encrypted"),
        (
            lambda content: content.replace(b"sigma.npy", b"mu.npy\0\0\0"),
            "several times",
        ),
        (_many_members, "its directory has more than"),
        (lambda content: b"", "not a zip file"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, damage, reason):
    path = tmp_path / "x.npz"
    np.savez(path, mu=_MU, sigma=_SIGMA)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(JcmError, match=rf"x.npz cannot be .*{reason}.*: name another"):
        _read(path)


def test_damaged_compression_is_one_line(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, mu=np.random.default_rng(0).normal(size=300), sigma=_MU)
    content = bytearray(path.read_bytes())
    content[600:640] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(JcmError, match="x.npz cannot be read .*: name another"):
        _read(path)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "_MORE", 10_000)
    np.savez_compressed(tmp_path / "x.npz", mu=np.zeros(100_000), sigma=_SIGMA)
    monkeypatch.setattr(zlib, "decompressobj", None)
    with pytest.raises(JcmError, match="mu has 800,128 bytes in .*np.savez, .*: name"):
        _read(tmp_path / "x.npz")


def test_a_single_array_is_read(tmp_path):
    labels = np.arange(9, dtype=np.int32)
    np.save(tmp_path / "x.npy", labels)
    expected = npz.Array(("int32",), (9,))
    found = npz.read_one(tmp_path / "x.npy", expected, "delete it")
    np.testing.assert_array_equal(found, labels)
    content = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(content[:-4])
    for path in (tmp_path / "x.npy", tmp_path, tmp_path / "none"):
        with pytest.raises(JcmError, match=f"{path}.*"):
            npz.read_one(path, expected, "delete it")
