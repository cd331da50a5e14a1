"""Everything that reads files of others, with a small file of each kind.

`seeds` writes the files, `attempt` reads one of them, perhaps after a change, and says
how that ended and what it cost. `tests/campaigns/fuzz.py` does so for a long time.
"""

import dataclasses
import json
import os
import pathlib
import pickle
import random
import shutil
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable
from typing import Any
from unittest import mock

import cost
import golden
import ml_collections
import mutations
import numpy as np
import originals
import stand_in
import torch_weights
from paths import DATA
from PIL import Image

import jcm
from jcm import config as config_lib
from jcm import data
from jcm.data import cifar10, image_folder, masks, prepared
from jcm.metrics import given, reference, weights
from jcm.model import card, pictures, scoring
from jcm.pretrained import openai_training, torch_file
from jcm.run import recorded_scores, results, workdir, writers
from jcm.runtime import files, hashes

_FORMATS = ("png", "jpg", "webp", "gif", "bmp", "tiff", "ppm")
_LONGEST_MESSAGE = 2000


@dataclasses.dataclass(frozen=True)
class Reader:
    """What reads the files of a kind.

    Attributes:
      read: reads the files in a folder.
      seed: writes them into an empty folder; from the folders of a model, a run and
        prepared digits.
      changes: which files are changed.
    """

    read: Callable[[pathlib.Path], Any]
    seed: Callable[[pathlib.Path, "Sources"], Any]
    changes: str = "*"


@dataclasses.dataclass(frozen=True)
class Sources:
    """What the seeds are made of.

    Attributes:
      run: the workdir of a run of the digits, with a checkpoint.
      prepared: the folder with the prepared digits.
    """

    run: pathlib.Path
    prepared: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How reading a file ended.

    Attributes:
      kind: accepted, refused, traceback, or budget if it cost more than it may.
      text: the error, or its traceback.
      memory: in bytes.
      seconds: of one core.
    """

    kind: str
    text: str
    memory: int
    seconds: float


def seeds(root: pathlib.Path, sources: Sources) -> None:
    """Writes a folder for each reader."""
    for name, reader in READERS.items():
        (root / name).mkdir(parents=True)
        reader.seed(root / name, sources)


def attempt(name: str, folder: pathlib.Path) -> Outcome:
    """Reads a folder, which may be damaged."""
    kind, text, caught = "accepted", "", None
    allowed = cost.allowed(folder)
    with cost.measured() as taken:
        try:
            READERS[name].read(folder)
        except jcm.JcmError as error:
            kind, text, caught = "refused", str(error), error
        except Exception as error:
            kind, text, caught = "traceback", f"{type(error).__name__}: {error}", error
    control = any(unicodedata.category(each).startswith("C") for each in text)
    if kind == "refused" and (len(text) > _LONGEST_MESSAGE or control):
        kind = "traceback"
    if taken.memory > allowed or taken.seconds > cost.SECONDS or _lacked_memory(caught):
        kind = "budget"
    return Outcome(kind, text, taken.memory, taken.seconds)


def changed(
    name: str, seeds: pathlib.Path, folder: pathlib.Path, rng: random.Random
) -> str:
    """Copies the files of a reader to a folder, changes them, and returns how.

    Most times it then makes the recorded hashes fit, as an attacker would.
    """
    mutations.copy(seeds / name, folder)
    how = mutations.mutate(folder, rng, READERS[name].changes)
    # What stands in the place of a file, such as a folder or a pipe, has no hash.
    names = [path.relative_to(seeds / name) for path in _files(seeds / name)]
    there = [folder / each for each in names if os.path.lexists(folder / each)]
    if rng.random() < 0.8 and all(path.is_file() for path in there):
        _make_hashes_fit(_files(folder))
        how += ", with its hash"
    return how


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _make_hashes_fit(found: list[pathlib.Path]) -> None:
    for path in found:
        if path.name == hashes.NAME:
            hashes.write_folder(path.parent)
        elif path.name == prepared.NAME:
            prepared.write(path.parent)
        elif hashes.beside(path).is_file():
            hashes.write(hashes.beside(path), {path.name: hashes.sha256(path)})


def _lacked_memory(error: BaseException | None) -> bool:
    """Returns whether an error, or one that led to it, is a lack of memory."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _adm() -> dict[str, np.ndarray]:
    return golden.unet_state("cc_ssn")


def _torch(folder: pathlib.Path) -> jcm.Model:
    return jcm.load(folder / "cd.pt", image_size=16, head_channels=16)


def _save(folder: pathlib.Path, to: str) -> None:
    place = folder.with_name(f"{folder.name}.pt")
    torch_weights.save(place, _adm())
    jcm.save(jcm.load(place, image_size=16, head_channels=16), folder, to=to)
    place.unlink()


def _records(folder: pathlib.Path) -> None:
    workdir.read(folder)
    card.in_words(recorded_scores.read(folder))
    writers.has_scalars(folder, 1, "loss")
    results.make_room(folder, "evaluate", ["comparison.png"], {"a": 1})


def _recorded(folder: pathlib.Path, sources: Sources) -> None:
    mutations.copy(sources.run, folder)
    results.make_room(folder, "evaluate", [], {"a": 1})
    score = {
        **{"model": "m", "step": 2, "weights": "w", "samples": "1 step, sigma 80"},
        **{"sigmas": [80.0], "solver": "consistency", "labels": [], "seed": 0},
        **{"num_images": 10, "by": {"fid": {"network": "n"}}, "scores": {"fid": 3.0}},
    }
    path = folder / recorded_scores.FILE
    files.write_text(path, 2 * (json.dumps(score) + "\n"))


def _moments(folder: pathlib.Path, size: int) -> None:
    rows = np.random.default_rng(0).standard_normal((4 * size, size))
    np.savez(folder / "s.npz", mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))


def _images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)


def _published(folder: pathlib.Path) -> Any:
    network, sizes = stand_in.network(), {"pool": 48, "spatial": 24}
    return reference.published(
        folder / "s.npz", network, sizes, {"pool"}, set(), size=8
    )


def _given_set() -> Any:
    return data.given.load(_images(), 8, 3)


def _cached(folder: pathlib.Path) -> Any:
    with mock.patch.dict(os.environ, JCM_CACHE=str(folder)):
        return reference.of_dataset(stand_in.network(), _given_set(), {"pool"}, set())


def _of_features(folder: pathlib.Path, cache: str, place: str = "") -> None:
    """Reads the weights of a feature network, from the cache or from a folder."""
    at = str(folder / place) if place else ""
    with (
        mock.patch.dict(weights.FILES, x=weights.File("x.pth", "", "")),
        mock.patch.dict(os.environ, JCM_CACHE=str(folder / cache)),
    ):
        weights.read("x", at)


def _write_of_features(folder: pathlib.Path, _: Sources) -> None:
    (folder / "weights").mkdir()
    file = torch_weights.save(folder / "weights" / "x.pth", {"a": np.ones((3, 4))})
    hashes.write(hashes.beside(file), {file.name: hashes.sha256(file)})
    _of_features(folder, "", "weights")
    (record,) = (folder / "first_read").iterdir()
    record.rename(folder / "record.json")
    os.utime(file, (0, 0))  # so that it was replaced


def _first_read(folder: pathlib.Path) -> None:
    """Reads weights a second time, with another record of the first reading."""
    shutil.rmtree(folder / "new", ignore_errors=True)
    _of_features(folder, "new", "weights")
    (record,) = (folder / "new" / "first_read").iterdir()
    record.unlink()
    record.symlink_to(folder / "record.json")
    _of_features(folder, "new", "weights")


def _samples(folder: pathlib.Path) -> Any:
    config = config_lib.base()
    config.data.image_size, config.data.channels = 8, 3
    return given.samples(config, str(folder / "samples.npz"), "--samples")


def _kept(folder: pathlib.Path) -> Any:
    return scoring._read(folder / "kept.npz", (20, 8, 8, 3))


def _data(folder: pathlib.Path, **fields: Any) -> ml_collections.ConfigDict:
    section = config_lib.base().data.copy_and_resolve_references()
    section.update(dir=str(folder), image_size=8, channels=1, **fields)
    return section


def _prepared(folder: pathlib.Path) -> None:
    data.load(_data(folder, name="digits")).arrays()


def _with_list(folder: pathlib.Path, _: Sources) -> None:
    labels = []
    for index in range(4):
        Image.fromarray(_images()[index]).save(folder / f"{index}.png")
        labels.append([f"{index}.png", index % 2])
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))


def _listed(folder: pathlib.Path) -> Any:
    fields = {"name": "image_folder", "path": str(folder)}
    return image_folder.ImageFolder.source(_data(folder, **fields))


def _cifar(folder: pathlib.Path, _: Sources) -> None:
    batch = {b"data": np.zeros((3, 3072), np.uint8), b"labels": [0, 1, 2]}
    (folder / "data_batch_1").write_bytes(pickle.dumps(batch, 2))


def _cifar_archive(folder: pathlib.Path, sources: Sources) -> None:
    _cifar(folder, sources)
    with tarfile.open(folder / "cifar.tar.gz", "w:gz", compresslevel=0) as archive:
        archive.add(folder / "data_batch_1", "cifar-10-batches-py/data_batch_1")
    (folder / "data_batch_1").unlink()


def _zipped(folder: pathlib.Path, sources: Sources) -> None:
    _with_list(folder, sources)
    with zipfile.ZipFile(folder / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (*folder.glob("*.png"), folder / "dataset.json"):
            archive.write(path, path.name)
            path.unlink()


def _of_zip(folder: pathlib.Path) -> None:
    fields = {"name": "image_folder", "path": str(folder / "set.zip")}
    source = image_folder.ImageFolder.source(_data(folder, **fields))
    list(image_folder._readable(source))


def _mask(folder: pathlib.Path, _: Sources) -> None:
    Image.fromarray(np.uint8([[0, 255], [0, 0]]), "L").save(folder / "mask.png")


def _masked(folder: pathlib.Path) -> None:
    path = folder / "mask.png"
    masks.of_picture(pictures.decoded(path), 16, str(path), {"image 0": (2, 2)})


def _pictures(folder: pathlib.Path, _: Sources) -> None:
    for form in _FORMATS:
        Image.fromarray(_images()[0]).resize((40, 30)).save(folder / f"picture.{form}")


def _decoded(folder: pathlib.Path) -> None:
    for path in sorted(folder.iterdir()):
        pictures.read_all([path], 16, 3, skip_broken=False, remedy="replace it")


READERS = {
    "pytorch": Reader(_torch, lambda to, _: torch_weights.save(to / "cd.pt", _adm())),
    "pytorch tensors": Reader(
        lambda folder: torch_file.load(folder / "torch_zip.pt"),
        lambda to, _: shutil.copy(DATA / "torch_zip.pt", to),
    ),
    "pytorch stream": Reader(
        lambda folder: torch_file.load(folder / "torch_stream.pth"),
        lambda to, _: shutil.copy(DATA / "torch_stream.pth", to),
    ),
    "flax": Reader(
        lambda folder: jcm.load(folder / "checkpoint_2", image_size=16),
        lambda to, _: originals.write(to / "checkpoint_2"),
    ),
    "training state": Reader(
        lambda folder: openai_training.read(folder / "checkpoint_2", golden.network()),
        lambda to, _: originals.own_file(to / "checkpoint_2", with_target=True),
    ),
    "saved model": Reader(jcm.load, lambda to, _: _save(to, "jcm")),
    "diffusers folder": Reader(jcm.load, lambda to, _: _save(to, "diffusers")),
    "run": Reader(
        jcm.load,
        lambda to, sources: mutations.copy(sources.run, to),
        changes="run.json",
    ),
    "records": Reader(_records, _recorded, changes="*.json*"),
    "checkpoint": Reader(
        jcm.load,
        lambda to, sources: mutations.copy(sources.run, to),
        changes="checkpoints/**/*",
    ),
    "published statistics": Reader(_published, lambda to, _: _moments(to, 48)),
    "cached statistics": Reader(_cached, lambda to, _: _cached(to)),
    "kept samples": Reader(
        _kept, lambda to, _: scoring._write(to / "kept.npz", _images(), None)
    ),
    "samples": Reader(
        _samples, lambda to, _: np.savez(to / "samples.npz", arr_0=_images())
    ),
    "dataset.json": Reader(_listed, _with_list, changes="*.json"),
    "prepared data": Reader(
        _prepared, lambda to, sources: mutations.copy(sources.prepared, to)
    ),
    "cifar": Reader(
        lambda folder: list(cifar10._examples(folder, ("data_batch_1",))), _cifar
    ),
    "cifar archive": Reader(
        lambda folder: list(
            cifar10._examples(folder / "cifar.tar.gz", ("data_batch_1",))
        ),
        _cifar_archive,
    ),
    "zip of pictures": Reader(_of_zip, _zipped),
    "feature weights": Reader(
        lambda folder: _of_features(folder, "new", "weights"),
        _write_of_features,
        changes="x.pth",
    ),
    "first reading": Reader(_first_read, _write_of_features, changes="record.json"),
    "record of a download": Reader(
        lambda folder: _of_features(folder, ""),
        _write_of_features,
        changes="x.pth.sha256",
    ),
    "pictures": Reader(_decoded, _pictures),
    "mask": Reader(_masked, _mask),
}
