"""Tests of the reader of PyTorch files, which reads tensors and never runs code."""

import collections
import io
import os
import pickle
import struct
import sys
import types
import zipfile

import cost
import numpy as np
import pytest
from paths import DATA

from jcm.pretrained import torch_file
from jcm.runtime import budget
from jcm.runtime.errors import JcmError

_FILES = ("torch_zip.pt", "torch_stream.pth")


@pytest.mark.parametrize("name", _FILES)
def test_every_kind_of_tensor_is_read(name):
    ours = torch_file.load(DATA / name)
    with np.load(DATA / "torch_expected.npz") as theirs:
        assert list(ours) == theirs.files
        for key in theirs.files:
            assert ours[key].shape == theirs[key].shape
            np.testing.assert_array_equal(
                ours[key].astype(theirs[key].dtype), theirs[key], err_msg=key
            )
    assert ours["brain"].dtype.name == "bfloat16"
    assert ours["long"].dtype == np.int64
    assert all(array.flags.owndata for array in ours.values())


@pytest.mark.parametrize("name", _FILES)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9, 0.999])
def test_a_truncated_file_raises(tmp_path, name, share):
    content = (DATA / name).read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(JcmError, match="cut.pt is not a complete PyTorch file"):
        torch_file.load(tmp_path / "cut.pt")


def test_the_error_names_a_missing_file(tmp_path):
    with pytest.raises(JcmError, match="cannot read .*none.pt: No such file"):
        torch_file.load(tmp_path / "none.pt")


def _zip(path, content, **storages):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
    return path


class _Call:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function, *arguments, state=None):
        self._made = (function, arguments, *([state] if state else []))

    def __reduce__(self):
        return self._made


_ATTACKS = {
    "command": _Call(os.system, "touch BROKEN"),
    "code": _Call(eval, "open('BROKEN', 'w')"),
    "import": _Call(__import__, "antigravity"),
    "nested": {"weights": [_Call(os.mkdir, "BROKEN")]},
    "attribute": _Call(getattr, "text", "join"),
    "array": np.zeros(3),
    "type": np.dtype("<f4"),
    "counter": collections.Counter("aab"),
    "bytes": bytearray(9),
}


@pytest.mark.parametrize("name", _ATTACKS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_calls_a_function_raises(tmp_path, monkeypatch, name, protocol):
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps(_ATTACKS[name], protocol)
    stream = b"".join(
        pickle.dumps(part, 2)
        for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    )
    (tmp_path / "stream.pth").write_bytes(stream + content + pickle.dumps([], 2))
    for path in (_zip(tmp_path / "zip.pt", content), tmp_path / "stream.pth"):
        with pytest.raises(JcmError, match="is refused"):
            torch_file.load(path)
    assert not (tmp_path / "BROKEN").exists()


def test_a_pickle_cannot_change_the_reader(tmp_path):
    # The pickle sets the state of an allowed name.
    for name in (b"torch\nFloatStorage", b"torch._utils\n_rebuild_tensor_v2"):
        content = b"\x80\x02c" + name + b"\n}X\x01\x00\x00\x00aK\x01sb."
        with pytest.raises(JcmError, match="not a complete PyTorch file"):
            torch_file.load(_zip(tmp_path / "state.pt", content))
    assert len(torch_file.load(DATA / _FILES[0])) == 12


def test_a_small_file_cannot_allocate_much_memory(tmp_path):
    # Memo slot number 4,294,967,294, and texts of a length that large.
    for content in (
        b"\x80\x02}r\xff\xff\xff\xfe.",
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"abc.",
    ):
        with pytest.raises(JcmError, match="not a complete PyTorch file"):
            torch_file.load(_zip(tmp_path / "memo.pt", content))


def test_a_compressed_archive_raises(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(10_000_000))
    with pytest.raises(JcmError, match="compressed"):
        torch_file.load(path)


def _tensor(monkeypatch, *view, count=1):
    """Returns the pickle of {"w0": a view of two numbers}, as torch writes it."""
    torch = types.ModuleType("torch")
    torch._utils = types.ModuleType("torch._utils")
    storage = type("FloatStorage", (), {"__module__": "torch"})
    torch.FloatStorage = storage

    def rebuild(*_):
        raise AssertionError

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    torch._utils._rebuild_tensor_v2 = rebuild
    for module in (torch, torch._utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            if isinstance(thing, storage):
                return ("storage", storage, "0", "cpu", 2)
            return None

    file = io.BytesIO()
    tensor = _Call(rebuild, storage(), *view, False, {})
    Pickler(file, 2).dump({f"w{i}": tensor for i in range(count)})
    return file.getvalue()


@pytest.mark.parametrize(
    "view",
    [
        (0, (3,), (1,)),
        (1, (2,), (1,)),
        (-1, (2,), (1,)),
        (0, (2,), (2,)),
        (0, (2,), (-1,)),
        (0, (10**6, 10**6), (0, 0)),
        (0, (-2, -1), (1, 1)),
        (0, (2,), (1, 1)),
        (0, ("a",), (1,)),
    ],
    ids=str,
)
def test_a_view_beyond_its_storage_raises(tmp_path, monkeypatch, view):
    two = np.arange(2, dtype=np.float32).tobytes()
    good = _zip(tmp_path / "good.pt", _tensor(monkeypatch, 1, (1,), (1,)), **{"0": two})
    np.testing.assert_array_equal(torch_file.load(good)["w0"], [1])
    bad = _zip(tmp_path / "bad.pt", _tensor(monkeypatch, *view), **{"0": two})
    with pytest.raises(JcmError, match="bad.pt is not a complete PyTorch file"):
        torch_file.load(bad)


def test_errors_name_other_contents(tmp_path):
    for thing, message in {
        "list": ([1, 2], "holds a list"),
        "number": ({"a": 1}, "'a' is not a tensor"),
        "nothing": ({}, "holds a dict"),
    }.values():
        with pytest.raises(JcmError, match=message):
            torch_file.load(_zip(tmp_path / "other.pt", pickle.dumps(thing, 2)))
    (tmp_path / "text.pt").write_text("not weights at all")
    with pytest.raises(JcmError, match="not a complete PyTorch file"):
        torch_file.load(tmp_path / "text.pt")


def test_views_of_one_storage_are_copied_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "SHARED_BYTES", 24)
    numbers = struct.pack("<2f", 1, 2)
    few, many = (_tensor(monkeypatch, 0, (2,), (1,), count=n) for n in (4, 5))
    assert len(torch_file.load(_zip(tmp_path / "few.pt", few, **{"0": numbers}))) == 4
    with pytest.raises(JcmError, match="its tensors share too few numbers"):
        torch_file.load(_zip(tmp_path / "many.pt", many, **{"0": numbers}))


# Hashing this key would take 2^60 steps.
_NESTED = b")" + b"".join(
    b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60)
)
_TEXT = b"X" + struct.pack("<I", 10**6) + b"a" * 10**6 + b"\x85q\x00"


@pytest.mark.parametrize(
    ("bomb", "message"),
    [
        (b"}" + _NESTED + b"K\x01s.", "a key is a tuple"),
        (b"}(" + _NESTED + b"K\x01u.", "a key is a tuple"),
        (b"})" + b"2\x86" * 60 + b"K\x01s.", "it uses DUP, which is refused"),
        (b"](K\x01K\x02u.", "items are put into a list"),
        # Each of the six bytes that are repeated would take 8 MB.
        (
            _TEXT + b"ctorch\nSize\nq\x01" + b"h\x01h\x00R" * 1000 + b".",
            "a shape is not described as PyTorch does it",
        ),
        # Keys with equal hashes take a time that is the square of their number.
        (
            b"}("
            + b"".join(
                b"\x8a\x14" + (i * (2**61 - 1)).to_bytes(20, "little") + b"K\x00"
                for i in range(1000)
            )
            + b"u.",
            "a key is a int",
        ),
        (b"]" * 10_001 + b".", "it does not end"),
    ],
    ids=["tuple", "tuples", "dup", "list", "memo", "integers", "nested"],
)
def test_a_small_pickle_cannot_take_much_memory_or_time(
    tmp_path, monkeypatch, bomb, message
):
    monkeypatch.setattr(budget, "PICKLE_OPERATIONS", 10_000)
    with cost.limited(tmp_path), pytest.raises(JcmError, match=message):
        torch_file.load(_zip(tmp_path / "bomb.pt", b"\x80\x02" + bomb))


def test_a_shape_has_few_dimensions(tmp_path, monkeypatch):
    two = struct.pack("<2f", 1, 2)
    for count, message in ((9, "more than 8 dimensions"), (1000, "more than 8")):
        content = _tensor(monkeypatch, 0, (1,) * count, (1,) * count)
        with pytest.raises(JcmError, match=message):
            torch_file.load(_zip(tmp_path / "bad.pt", content, **{"0": two}))


def test_members_of_an_archive_cannot_exceed_the_file(tmp_path):
    path = _zip(tmp_path / "sizes.pt", pickle.dumps({}, 2), **{"0": bytes(100)})
    content = path.read_bytes()
    # The sizes of the last member in the directory, before and after compression.
    at = content.rindex(b"PK\x01\x02") + 20
    huge = struct.pack("<II", 10**9, 10**9)
    path.write_bytes(content[:at] + huge + content[at + 8 :])
    with pytest.raises(JcmError, match="its members share bytes"):
        torch_file.load(path)


def test_an_archive_has_a_short_directory(tmp_path):
    with zipfile.ZipFile(tmp_path / "many.pt", "w") as archive:
        for index in range(3000):
            archive.writestr(f"{index:0>1500}", b"")
    with pytest.raises(JcmError, match="its directory has more than 4,194,304 bytes"):
        torch_file.load(tmp_path / "many.pt")


def test_a_file_that_never_ends_is_not_opened(tmp_path):
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.pt")
    for name in ("zero.pt", "pipe.pt"):
        with pytest.raises(JcmError, match=f"{name} is not a regular file"):
            torch_file.load(tmp_path / name)
