"""Data: builders, errors, order of the stream, exact resume."""

import contextlib
import io
import os
import pickle
import struct
import tarfile

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from jcm import data
from jcm.data import cifar10, digits, download, image_folder, pictures, pipeline
from jcm.errors import JcmError


@pytest.fixture
def config(tmp_path_factory):
    return ConfigDict(
        {
            "name": "digits",
            "path": "",
            "dir": str(tmp_path_factory.mktemp("prepared")),
            "image_size": 8,
            "channels": 1,
            "skip_broken": False,
            "cache_mib": 1024,
        }
    )


@pytest.fixture(scope="module")
def digit_set(tmp_path_factory):
    prepared = tmp_path_factory.mktemp("digits")
    return data.load(
        ConfigDict(
            {
                "name": "digits",
                "path": "",
                "dir": str(prepared),
                "image_size": 8,
                "channels": 1,
                "cache_mib": 1024,
            }
        )
    )


def of_folder(config, path, image_size=8, channels=3, **changes):
    return ConfigDict(
        {
            **config,
            "name": "image_folder",
            "path": str(path),
            "image_size": image_size,
            "channels": channels,
            **changes,
        }
    )


def picture(seed=0, size=(8, 8), channels=3):
    shape = (size[1], size[0], channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path, seed=0, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed, size)).save(path)


# --- digits ---------------------------------------------------------------------------


def test_digits_are_those_of_scikit_learn(digit_set):
    from sklearn import datasets

    source = datasets.load_digits()
    arrays = digit_set.arrays()
    assert arrays["image"].shape == (1797, 8, 8, 1)
    assert arrays["image"].dtype == np.uint8 and arrays["label"].dtype == np.int32
    np.testing.assert_array_equal(arrays["label"], source.target)
    np.testing.assert_allclose(
        arrays["image"][..., 0], source.images * 255 / 16, atol=0.5
    )
    assert digit_set.class_names == tuple("0123456789")


def test_lazily_decoded_records_equal_the_cached_ones(config, digit_set):
    config.dir = ""
    config.cache_mib = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JCM_DATA", prepared_root(digit_set))
        lazy = data.load(config)
    chosen = np.array([5, 1796, 5])
    for key, value in lazy.take(chosen).items():
        np.testing.assert_array_equal(value, digit_set.take(chosen)[key])
    np.testing.assert_array_equal(lazy.arrays()["image"], digit_set.arrays()["image"])
    assert lazy.fingerprint == digit_set.fingerprint
    assert "_decoded" not in vars(lazy)


def prepared_root(dataset):
    return os.path.dirname(os.path.dirname(dataset._records.dataset_info.data_dir))


def test_parts_of_a_split_have_fingerprints_of_their_own(config):
    whole, part = data.load(config), data.load(config, "train[:10]")
    assert len(part) == 10 and part.fingerprint != whole.fingerprint


@pytest.mark.parametrize(
    ("change", "split", "remedy"),
    [
        ({"name": "mnist"}, "train", "use digits, cifar10, image_folder"),
        ({"image_size": 32}, "train", "--config.data.image_size=8"),
        ({"channels": 3}, "train", "--config.data.channels=1"),
        ({}, "test", "train"),
        ({"name": "image_folder"}, "train", "--config.data.path=<folder>"),
    ],
)
def test_config_mistakes_are_one_line_with_the_remedy(config, change, split, remedy):
    config.update(change)
    with pytest.raises(JcmError, match=remedy) as info:
        data.load(config, split)
    assert "\n" not in str(info.value)


# --- preparing ------------------------------------------------------------------------


def test_preparing_twice_reads_the_source_once(config, monkeypatch):
    first = data.load(config)
    monkeypatch.setattr(digits.Digits, "_split_generators", None)
    assert data.load(config) == first


def test_interrupted_preparation_leaves_nothing_and_can_be_repeated(
    config, monkeypatch
):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 100, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            data.load(config)
    assert not [path for path in all_files(config.dir) if "1.0.0" in path]
    assert len(data.load(config)) == 1797


def interrupt_after(patch, count, error):
    generate = digits.Digits._generate_examples

    def interrupted(self, split, pictures):
        for key, example in generate(self, split, pictures):
            if key == count:
                raise error
            yield key, example

    patch.setattr(digits.Digits, "_generate_examples", interrupted)


def all_files(folder):
    return [
        os.path.join(where, f) for where, _, files in os.walk(folder) for f in files
    ]


def test_the_loser_of_a_race_uses_what_the_winner_prepared(config, monkeypatch):
    generate = digits.Digits._split_generators
    winners = []

    def overtaken(self, dl_manager):
        if not winners:
            winners.append(None)
            winners[0] = data.load(config)
        return generate(self, dl_manager)

    monkeypatch.setattr(digits.Digits, "_split_generators", overtaken)
    assert data.load(config) == winners[0]
    assert not [path for path in all_files(config.dir) if "incomplete" in path]


def test_a_data_directory_that_cannot_be_written_is_named(config):
    blocked = os.path.join(config.dir, "file")
    open(blocked, "w").close()
    config.dir = blocked
    with pytest.raises(JcmError, match="--config.data.dir"):
        data.load(config)


# --- cifar10 --------------------------------------------------------------------------


class Python2Pickler(pickle._Pickler):
    """Writes bytes as the str of Python 2, as the published archive has them."""

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


def of_cifar(config, path):
    changes = {"name": "cifar10", "path": str(path), "image_size": 32, "channels": 3}
    return ConfigDict({**config, **changes})


def test_cifar10_from_its_archive(config, tmp_path):
    files = cifar_files()
    config = of_cifar(config, write_archive(tmp_path / "cifar.tar.gz", files))
    train, test = data.load(config), data.load(config, "test")
    assert (len(train), len(test)) == (15, 3)
    assert train.fingerprint != test.fingerprint
    source = pickle.loads(files["data_batch_2"], encoding="bytes")
    part = train.take(np.arange(3, 6))
    assert part["label"].tolist() == source[b"labels"]
    planes = source[b"data"].reshape(3, 3, 32, 32)
    for channel in range(3):
        np.testing.assert_array_equal(part["image"][..., channel], planes[:, channel])


def test_cifar10_from_the_extracted_folder_is_the_same_set(config, tmp_path):
    files = cifar_files()
    archive = write_archive(tmp_path / "cifar.tar.gz", files)
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "extracted", filter="data")
    packed = data.load(of_cifar(config, archive))
    assert data.load(of_cifar(config, tmp_path / "extracted")) == packed


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
def test_a_spoilt_cifar10_archive_says_where_to_get_a_whole_one(
    config, tmp_path, spoil
):
    path = tmp_path / "cifar.tar.gz"
    spoil(path, cifar_files())
    with pytest.raises(JcmError, match=r"cs\.toronto\.edu.*--config\.data\.path") as e:
        data.load(of_cifar(config, path))
    assert str(path) in str(e.value) and "\n" not in str(e.value)


def test_a_missing_cifar10_archive_says_where_to_get_it(config):
    with pytest.raises(JcmError, match=r"/nowhere does not exist: .*cs\.toronto\.edu"):
        data.load(of_cifar(config, "/nowhere"))


class Attack:
    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_the_unpickler_calls_nothing_but_numpy(config, tmp_path):
    attack, files = Attack(), cifar_files()
    attack.path = str(tmp_path / "executed")
    files["data_batch_1"] = pickle.dumps({b"data": attack, b"labels": [0]})
    with pytest.raises(JcmError, match="refusing to load posix.mkdir"):
        data.load(of_cifar(config, write_archive(tmp_path / "cifar.tar.gz", files)))
    assert not os.path.exists(attack.path)


def test_numpy_beyond_its_constructors_is_refused():
    opened = io.BytesIO(b"cnumpy\nload\n.")
    with pytest.raises(pickle.UnpicklingError, match=r"numpy\.load"):
        cifar10.DataUnpickler(opened).load()


def test_download_keeps_only_what_has_the_published_hash(tmp_path):
    (tmp_path / "source.gz").write_bytes(b"content")
    url, folder = (tmp_path / "source.gz").as_uri(), tmp_path / "downloads"
    with pytest.raises(JcmError, match="md5 9a0364b9e99bb480dd25e1f0284c8555: help"):
        download.fetch(url, "0" * 32, folder, "help")
    assert not list(folder.iterdir())
    path = download.fetch(url, "9a0364b9e99bb480dd25e1f0284c8555", folder, "help")
    assert path.read_bytes() == b"content" and list(folder.iterdir()) == [path]
    (tmp_path / "source.gz").unlink()
    assert download.fetch(url, "unused", folder, "help") == path
    with pytest.raises(JcmError, match="cannot download .*: help"):
        download.fetch(url.replace("source", "other"), "0" * 32, folder, "help")


def test_mock_data_stands_in_for_cifar10(config):
    with tfds.testing.mock_data(num_examples=7):
        mocked = data.load(of_cifar(config, ""))
        batch = next(data.batches(mocked, 16, seed=0, flip=True))
    assert len(mocked) == 7 and batch["image"].shape == (16, 32, 32, 3)
    assert set(batch["label"]) == set(mocked.arrays()["label"])


# --- pictures -------------------------------------------------------------------------


def test_alpha_lies_on_white(tmp_path):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:2, :, 3] = 255
    rgba[2, :, 3] = 128
    Image.fromarray(rgba).save(tmp_path / "a.png")
    image = pictures.read(tmp_path / "a.png", 4, 3)
    assert image[0, 0].tolist() == [200, 0, 0]
    assert image[2, 0].tolist() == [227, 127, 127]
    assert image[3, 0].tolist() == [255, 255, 255]


def test_palette_with_a_transparent_entry(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "p.gif", transparency=1)
    read = pictures.read(tmp_path / "p.gif", 2, 3)
    assert read.tolist() == [
        [[255, 0, 0], [255, 255, 255]],
        [[0, 0, 255], [255, 0, 0]],
    ]


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    grey = np.array([[0, 257], [32896, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "g.png")
    assert pictures.read(tmp_path / "g.png", 2, 1)[..., 0].tolist() == [
        [0, 1],
        [128, 255],
    ]


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise
    upright = picture(size=(4, 4))
    Image.fromarray(upright).save(tmp_path / "r.png", exif=exif)
    read = pictures.read(tmp_path / "r.png", 4, 3)
    np.testing.assert_array_equal(read, np.rot90(upright, -1))


@pytest.mark.parametrize("size", [(13, 8), (8, 13)])
def test_the_central_square_shrinks_by_averages(tmp_path, size):
    save(tmp_path / "wide.png", size=size)
    pixels = picture(size=size).astype(float)
    square = pixels[:, 2:10] if size[0] > size[1] else pixels[2:10]
    averages = square.reshape(4, 2, 4, 2, 3).mean((1, 3))
    read = pictures.read(tmp_path / "wide.png", 4, 3)
    # Pillow rounds after the rows and again after the columns.
    np.testing.assert_allclose(read, averages, atol=1)


def test_small_pictures_are_enlarged_smoothly(tmp_path):
    Image.fromarray(np.array([[0, 200]] * 2, np.uint8)).save(tmp_path / "s.png")
    read = pictures.read(tmp_path / "s.png", 8, 1)
    assert read.shape == (8, 8, 1) and len(np.unique(read)) > 4


def test_grey_and_colour_become_each_other(tmp_path):
    Image.fromarray(np.full((2, 2), 77, np.uint8)).save(tmp_path / "g.png")
    Image.new("RGB", (2, 2), (255, 0, 0)).save(tmp_path / "c.bmp")
    assert (pictures.read(tmp_path / "g.png", 2, 3) == 77).all()
    assert (pictures.read(tmp_path / "c.bmp", 2, 1) == 76).all()


def test_an_animation_gives_its_first_frame(tmp_path):
    red, blue = Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2), "blue")
    red.save(tmp_path / "a.webp", save_all=True, append_images=[blue], lossless=True)
    assert pictures.read(tmp_path / "a.webp", 2, 3)[0, 0].tolist() == [255, 0, 0]


# --- image_folder ---------------------------------------------------------------------


def test_subfolders_are_the_classes(config, tmp_path):
    save(tmp_path / "dog" / "deep" / "1.png", seed=1)
    save(tmp_path / "cat" / "2.PNG", seed=2)
    save(tmp_path / "dog" / "0.png", seed=3)
    save(tmp_path / ".hidden" / "0.png")
    save(tmp_path / "cat" / "._2.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "readme.txt").write_text("no picture")
    dataset = data.load(of_folder(config, tmp_path))
    assert dataset.class_names == ("cat", "dog")
    arrays = dataset.arrays()
    assert arrays["label"].tolist() == [0, 1, 1]
    for image, seed in zip(arrays["image"], (2, 3, 1), strict=True):
        np.testing.assert_array_equal(image, picture(seed))


def test_a_flat_folder_is_one_class(config, tmp_path):
    save(tmp_path / "emoji" / "0.png")
    dataset = data.load(of_folder(config, tmp_path / "emoji", image_size=4, channels=1))
    assert dataset.class_names == ("emoji",)
    assert dataset.arrays()["image"].shape == (1, 4, 4, 1)


def test_pictures_beside_the_classes_are_refused(config, tmp_path):
    save(tmp_path / "cat" / "0.png")
    save(tmp_path / "stray.png")
    with pytest.raises(JcmError, match=r"1 pictures outside.*stray\.png"):
        data.load(of_folder(config, tmp_path))


def test_broken_pictures_are_counted_and_named(config, tmp_path):
    for i in range(4):
        save(tmp_path / f"sound{i}.png", seed=i, size=(64, 64))
    for i in range(5):
        (tmp_path / f"broken{i}.jpg").write_bytes(b"not a picture")
    whole = (tmp_path / "sound0.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(JcmError) as info:
        data.load(of_folder(config, tmp_path))
    message = str(info.value)
    assert message.startswith("6 of 10 pictures cannot be read")
    assert "broken0.jpg" in message and "broken4.jpg" not in message
    assert message.endswith("--config.data.skip_broken=True")
    assert "\n" not in message
    dataset = data.load(of_folder(config, tmp_path, skip_broken=True))
    assert len(dataset) == 4
    with pytest.raises(JcmError, match="6 of 10"):
        data.load(of_folder(config, tmp_path))


@pytest.mark.parametrize("skip_broken", [False, True])
def test_a_folder_of_broken_pictures_only(config, tmp_path, skip_broken):
    (tmp_path / "broken.png").write_bytes(b"")
    with pytest.raises(JcmError, match="1 of 1 pictures cannot be read"):
        data.load(of_folder(config, tmp_path, skip_broken=skip_broken))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("", "no pictures in .*png"),
        ("nowhere", "is not a folder: name one that exists"),
    ],
)
def test_empty_and_missing_folders(config, tmp_path, name, remedy):
    with pytest.raises(JcmError, match=remedy):
        data.load(of_folder(config, tmp_path / name))


def test_a_changed_folder_is_prepared_again(config, tmp_path):
    here = of_folder(config, tmp_path)
    save(tmp_path / "0.png")
    first = data.load(here)
    save(tmp_path / "1.png", seed=1)
    second = data.load(here)
    assert (len(first), len(second)) == (1, 2)
    same_size = (tmp_path / "0.png").stat().st_size
    Image.fromarray(255 - picture()).save(tmp_path / "0.png")
    assert (tmp_path / "0.png").stat().st_size == same_size
    os.utime(tmp_path / "0.png", ns=(0, 0))
    third = data.load(here)
    assert (third.arrays()["image"][0] == 255 - picture()).all()
    small = data.load(of_folder(config, tmp_path, image_size=4))
    sets = (first, second, third, small)
    assert len({dataset.fingerprint for dataset in sets}) == 4


def test_the_fingerprint_is_of_the_content_not_of_the_place(config, tmp_path):
    for place in ("here/faces", "there/faces"):
        save(tmp_path / place / "0.png")
    here = data.load(of_folder(config, tmp_path / "here/faces"))
    there = data.load(of_folder(config, tmp_path / "there/faces"))
    assert here.fingerprint == there.fingerprint


def test_a_builder_config_does_not_flood_the_log(config, tmp_path, caplog):
    save(tmp_path / "0.png")
    data.load(of_folder(config, tmp_path))
    assert not caplog.records


# --- batches --------------------------------------------------------------------------


@pytest.fixture
def numbered(config, tmp_path):
    """Ten pictures, told apart by their first pixel, which differs from the others."""
    for i in range(10):
        pixels = np.zeros((4, 4, 3), np.uint8)
        pixels[:, 0] = i + 1
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return data.load(of_folder(config, tmp_path, image_size=4))


def draw(count, dataset, batch_size, **options):
    options = {"seed": 0, "flip": False, "workers": 0, **options}
    iterator = data.batches(dataset, batch_size, **options)
    with contextlib.closing(iterator):
        return [next(iterator) for _ in range(count)]


def identity(batch_list):
    return np.concatenate([batch["image"].max((1, 2, 3)) for batch in batch_list])


@pytest.mark.parametrize("batch_size", [5, 4, 10, 25])
def test_every_epoch_shows_every_record_once_in_a_new_order(numbered, batch_size):
    epochs = identity(draw(100 // batch_size, numbered, batch_size)).reshape(10, 10)
    assert (np.sort(epochs) == np.arange(1, 11)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 10


def test_seeds_and_epochs_do_not_share_permutations(numbered):
    by_seed = [identity(draw(4, numbered, 10, seed=seed)) for seed in range(4)]
    epochs = np.stack(by_seed).reshape(16, 10)
    assert len({tuple(epoch) for epoch in epochs}) == 16


@pytest.mark.parametrize("process_count", [2, 4])
def test_the_global_batch_does_not_depend_on_the_processes(numbered, process_count):
    alone = draw(7, numbered, 8, flip=True)
    shares = [
        draw(
            7,
            numbered,
            8 // process_count,
            flip=True,
            process_index=index,
            process_count=process_count,
        )
        for index in range(process_count)
    ]
    for whole, *parts in zip(alone, *shares, strict=True):
        for key, value in whole.items():
            joined = np.concatenate([part[key] for part in parts])
            np.testing.assert_array_equal(joined, value)


def test_half_of_the_pictures_are_mirrored_independently(numbered):
    batch_list = draw(40, numbered, 50, flip=True, seed=3)
    flipped = np.stack([batch["image"][:, 0, 3, 0] > 0 for batch in batch_list])
    assert abs(flipped.mean() - 0.5) < 4 * 0.5 / np.sqrt(flipped.size)
    assert len({tuple(row) for row in flipped}) == 40
    plain = draw(40, numbered, 50, flip=False, seed=3)
    np.testing.assert_array_equal(identity(batch_list), identity(plain))
    for batch, original, mirrored in zip(batch_list, plain, flipped, strict=True):
        expected = np.where(
            mirrored[:, None, None, None],
            original["image"][:, :, ::-1],
            original["image"],
        )
        np.testing.assert_array_equal(batch["image"], expected)


def test_batches_are_contiguous_and_writing_to_them_harms_nothing(digit_set):
    first, second = draw(2, digit_set, 1797)
    assert first["image"].flags.c_contiguous and first["image"].dtype == np.uint8
    assert first["label"].dtype == np.int32
    first["image"][:] = 0
    assert second["image"].any() and digit_set.arrays()["image"].any()
    with pytest.raises(ValueError, match="read-only"):
        digit_set.arrays()["image"][:] = 0


def test_threads_do_not_change_the_stream(digit_set):
    slow = draw(20, digit_set, 64, flip=True, workers=0)
    fast = draw(20, digit_set, 64, flip=True, workers=4)
    for a, b in zip(slow, fast, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_through_orbax_is_exact(digit_set, tmp_path, workers):
    options = {"seed": 1, "flip": True, "workers": workers}
    running = data.batches(digit_set, 100, **options)
    # Past the first epoch, so that the epoch is part of what must be restored.
    for _ in range(20):
        next(running)
    with ocp.CheckpointManager(tmp_path) as manager:
        arrays = ocp.args.StandardSave({"step": np.array(20)})
        position = grain.checkpoint.CheckpointSave(running)
        manager.save(20, args=ocp.args.Composite(state=arrays, data=position))
        expected = [next(running) for _ in range(20)]
        manager.wait_until_finished()
    fresh = data.batches(digit_set, 100, **options)
    next(fresh)  # prefetched batches of the old position must not come out
    with ocp.CheckpointManager(tmp_path) as manager:
        position = grain.checkpoint.CheckpointRestore(fresh)
        restored = manager.restore(20, args=ocp.args.Composite(data=position))["data"]
    for batch in expected:
        resumed = next(restored)
        np.testing.assert_array_equal(resumed["image"], batch["image"])
        np.testing.assert_array_equal(resumed["label"], batch["label"])


def test_one_picture_is_enough(config, tmp_path):
    save(tmp_path / "0.png")
    (batch,) = draw(1, data.load(of_folder(config, tmp_path)), 32)
    assert (batch["image"] == picture()).all() and len(batch["image"]) == 32


def test_positions_far_out_are_reached_at_once(digit_set):
    iterator = data.batches(digit_set, 512, seed=0, flip=True, workers=0)
    iterator.set_state({"next_index": 10**9})
    expected = pipeline._records(10**9 * 512 + np.arange(512), 1797, 0)
    np.testing.assert_array_equal(
        next(iterator)["label"], digit_set.arrays()["label"][expected]
    )


def test_no_builder_takes_a_name_in_the_registry_of_tfds():
    assert tfds.builder_cls("cifar10") is not cifar10.Cifar10
    assert image_folder.ImageFolder.name == "image_folder"
