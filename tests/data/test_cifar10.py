"""Tests of CIFAR-10: reading its archive, and archives that raise."""

import gzip
import io
import os
import pickle
import struct
import tarfile

import cost
import numpy as np
import pytest
from ml_collections import ConfigDict

from jcm import data
from jcm.data import cifar10
from jcm.runtime import budget
from jcm.runtime.errors import JcmError


class Python2Pickler(pickle._Pickler):
    """Pickles bytes as the str of Python 2, like the published archive."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_bytes(self, text):
        self.write(pickle.BINSTRING + struct.pack("<i", len(text)) + text)
        self.memoize(text)

    dispatch[bytes] = save_bytes


def python2_pickle(value):
    buffer = io.BytesIO()
    Python2Pickler(buffer, 2).dump(value)
    return buffer.getvalue().replace(b"numpy._core.multi", b"numpy.core.multi")


def cifar_files(per_batch=3):
    names = [f"data_batch_{i}" for i in (4, 1, 5, 2, 3)] + ["test_batch"]
    files = {"batches.meta": b"not looked at"}
    for name in names:
        seed = sum(name.encode())
        pixels = np.random.default_rng(seed).integers(
            0, 256, (per_batch, 3072), np.uint8
        )
        labels = [(seed + i) % 10 for i in range(per_batch)]
        dump = python2_pickle if name != "test_batch" else pickle.dumps
        files[name] = dump({b"data": pixels, b"labels": labels})
    return files


def write_archive(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def of_cifar(data_config, path):
    changes = {"name": "cifar10", "path": str(path), "image_size": 32, "channels": 3}
    return ConfigDict({**data_config, **changes})


def test_cifar10_from_its_archive(data_config, tmp_path):
    files = cifar_files()
    data_config = of_cifar(data_config, write_archive(tmp_path / "cifar.tar.gz", files))
    train, test = data.load(data_config), data.load(data_config, "test")
    assert (len(train), len(test)) == (15, 3)
    assert train.fingerprint != test.fingerprint
    source = pickle.loads(files["data_batch_2"], encoding="bytes")
    part = train.take(np.arange(3, 6))
    assert part["label"].tolist() == source[b"labels"]
    planes = source[b"data"].reshape(3, 3, 32, 32)
    for channel in range(3):
        np.testing.assert_array_equal(part["image"][..., channel], planes[:, channel])


def test_cifar10_from_the_extracted_folder_is_the_same_set(data_config, tmp_path):
    files = cifar_files()
    archive = write_archive(tmp_path / "cifar.tar.gz", files)
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "extracted", filter="data")
    packed = data.load(of_cifar(data_config, archive))
    assert data.load(of_cifar(data_config, tmp_path / "extracted")) == packed


def test_an_archive_that_is_planted_in_the_cache_is_refused(
    data_config, tmp_path, caplog
):
    data_config.dir = str(tmp_path / "prepared")
    place = tmp_path / "prepared" / "downloads" / "cifar-10-python.tar.gz"
    place.parent.mkdir(parents=True)
    write_archive(place, cifar_files())
    with pytest.raises(JcmError, match=f"{place} is there, but with md5 .*: delete it"):
        data.load(of_cifar(data_config, ""))
    assert not list((tmp_path / "prepared").glob("cifar10/*"))
    data.load(of_cifar(data_config, place))
    assert f"the MD5 of {place} is not that of the published" in caplog.text


def cut(path, files):
    write_archive(path, files)
    path.write_bytes(path.read_bytes()[:-2000])


def without_a_batch(path, files):
    del files["data_batch_3"]
    write_archive(path, files)


def not_an_archive(path, files):
    path.write_bytes(b"<html>404</html>")


def label_out_of_range(path, files):
    pixels = np.zeros((1, 3072), np.uint8)
    files["data_batch_1"] = python2_pickle({b"data": pixels, b"labels": [10]})
    write_archive(path, files)


@pytest.mark.parametrize(
    "spoil", [cut, without_a_batch, not_an_archive, label_out_of_range]
)
def test_the_error_about_a_damaged_archive_says_where_to_get_a_good_one(
    data_config, tmp_path, spoil
):
    path = tmp_path / "cifar.tar.gz"
    spoil(path, cifar_files())
    with pytest.raises(JcmError, match=r"cs\.toronto\.edu.*--config\.data\.path") as e:
        data.load(of_cifar(data_config, path))
    assert str(path) in str(e.value) and "\n" not in str(e.value)


def test_the_error_about_a_missing_archive_says_where_to_get_it(data_config):
    with pytest.raises(JcmError, match=r"/nowhere does not exist: .*cs\.toronto\.edu"):
        data.load(of_cifar(data_config, "/nowhere"))


class Attack:
    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_the_unpickler_calls_nothing_but_numpy(data_config, tmp_path):
    attack, files = Attack(), cifar_files()
    attack.path = str(tmp_path / "executed")
    files["data_batch_1"] = pickle.dumps({b"data": attack, b"labels": [0]})
    with pytest.raises(JcmError, match="asks for posix.mkdir"):
        data.load(
            of_cifar(data_config, write_archive(tmp_path / "cifar.tar.gz", files))
        )
    assert not os.path.exists(attack.path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cnumpy\nload\n.", "asks for numpy.load"),
        # Memo slot 2^31, for which the unpickler of Python fills 16 GB.
        (b"\x80\x02}r\x00\x00\x00\x80cos\nsystem\n.", "asks for os.system"),
        (
            b"\x80\x02]("
            + b"c_codecs\nencode\nq\x00X\x40\x00\x00\x00"
            + b"a" * 64
            + b"X\x06\x00\x00\x00latin1\x86"
            + b"q\x01R"
            + b"h\x00h\x01R" * 50
            + b"e.",
            "repeats its texts",
        ),
    ],
)
def test_the_unpickler_calls_no_function_and_takes_little(content, message):
    with pytest.raises(budget.Refused, match=message):
        cifar10.unpickled(content)


def test_the_pixels_of_a_pickle_are_of_a_type_with_a_name():
    # A tuple of two equal tuples, 22 times, which takes 29 MB to print.
    nested = b")" + b"q\x00h\x00\x86" * 22
    with pytest.raises(budget.Refused, match="type of its numbers is not a name"):
        cifar10.unpickled(b"\x80\x02cnumpy\ndtype\n" + nested + b"\x85R.")


def test_labels_are_whole_numbers(tmp_path):
    nested = ()
    for _ in range(40):  # the hash of it would take 2^40 operations
        nested = (nested, nested)
    pixels = np.zeros((1, 3072), np.uint8)
    batch = pickle.dumps({b"data": pixels, b"labels": [nested]}, 2)
    (tmp_path / "data_batch_1").write_bytes(batch)
    with pytest.raises(JcmError, match="labels that are not whole numbers"):
        list(cifar10._examples(tmp_path, ("data_batch_1",)))


def _bomb(kind, size):
    """Returns an archive with a header, and with as many zeros as it states."""
    member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
    member.type, member.size = kind, size
    zeros = gzip.compress(bytes(2**24), 9)
    return gzip.compress(member.tobuf(tarfile.GNU_FORMAT)) + zeros * (size // 2**24)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (tarfile.GNUTYPE_LONGNAME, 3 * 2**30),
        (tarfile.XHDTYPE, 3 * 2**30),
        (tarfile.REGTYPE, -512),
        (tarfile.REGTYPE, 2**26),
    ],
)
def test_an_archive_is_not_unpacked_without_end(tmp_path, monkeypatch, kind, size):
    monkeypatch.setattr(cifar10, "_UNPACKED_BYTES", 2**26)
    path = tmp_path / "cifar.tar.gz"
    path.write_bytes(_bomb(kind, size))
    with cost.limited(path), pytest.raises(JcmError, match="larger files than CIFAR"):
        list(cifar10._examples(path, ("data_batch_1",)))
