"""Tests of published checkpoints by name, and of their classes."""

import hashlib
import re

import originals
import pytest
from paths import ROOT

import jcm
from jcm.model.labels import label_number
from jcm.model.loading import exists
from jcm.pretrained import imagenet, released
from jcm.runtime import hashes


@pytest.fixture
def file(tmp_path):
    return originals.write(tmp_path / "checkpoint_2")


def test_a_published_file_is_downloaded_once(file, tmp_path, monkeypatch):
    originals.publish(monkeypatch)
    monkeypatch.setenv("JCM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(released, "_BASE", f"{(tmp_path / 'server').as_uri()}/")
    for name in ("openai/cd-cifar10-lpips", "openai/edm-cifar10"):
        place = tmp_path / "server" / released.RELEASED[name].file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    model = jcm.load("openai/cd-cifar10-lpips")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    expected = (
        f"No hash was published to compare the file with; its SHA-256 is `{digest}`"
    )
    assert expected in model.about.notes
    assert "The weights are `openai/cd-cifar10-lpips`, published" in model.about.notes
    assert model.config.sample.sigmas == (80.0, 0.5853)
    originals.check(model)
    teacher = jcm.load("openai/edm-cifar10")
    assert teacher.kind == "diffusion" and teacher.config.sample.steps == 18
    assert exists("openai/edm-cifar10")
    assert not exists("openai/ct-cifar10-lpips")
    for hint in ({"kind": "consistency"}, {"image_size": 64}):
        with pytest.raises(jcm.JcmError, match="openai/edm-cifar10 has"):
            jcm.load("openai/edm-cifar10", **hint)
    place.unlink()
    originals.check(jcm.load("openai/edm-cifar10"))
    # A file that somebody put there is not said to be the publisher's.
    hashes.beside(released._place("openai/cd-cifar10-lpips")).unlink()
    notes = jcm.load("openai/cd-cifar10-lpips").about.notes
    assert "is taken for `openai/cd-cifar10-lpips`" in notes
    assert "; jcm did not download it." in notes and f"`{digest}`" in notes
    # A file at the place of a download is compared with what was downloaded.
    found = released.fetch("openai/edm-cifar10")
    originals.write(found, with_target=True)
    with pytest.raises(jcm.JcmError, match=f"{found} has changed since .* delete "):
        jcm.load("openai/edm-cifar10")
    (tmp_path / "cache" / "pretrained" / "openai" / "edm-cifar10").rename(
        tmp_path / "x"
    )
    with pytest.raises(jcm.JcmError, match="elsewhere and put it at .*edm_cifar10_ema"):
        jcm.load("openai/edm-cifar10")
    with pytest.raises(
        jcm.JcmError, match="'openai/gan' is no published model: use one of op"
    ):
        jcm.load("openai/gan")


def _files():
    """The addresses that the READMEs of the two releases state."""
    cifar = [
        f"jcm_checkpoints/{folder}/checkpoints/checkpoint_{number}"
        for folder, number in (
            *((f"cd-{metric}", 80) for metric in ("l1", "l2", "lpips")),
            ("ct-lpips", 74),
            *(
                (f"cifar10-continuous-cd-{kind}", 40)
                for kind in ("l2", "l2-stopgrad", "lpips-stopgrad")
            ),
            ("continuous-ct-l2", 80),
            ("continuous-ct-lpips", 40),
        )
    ]
    large = [
        name.format(data)
        for data in ("imagenet64", "bedroom256", "cat256")
        for name in ("edm_{}_ema", "cd_{}_l2", "cd_{}_lpips", "ct_{}")
    ]
    return {
        "jcm_checkpoints/edm_cifar10_ema",
        *cifar,
        *(f"{name}.pt" for name in large),
    }


def test_every_published_file_has_a_name():
    files = [each.file for each in released.RELEASED.values()]
    assert len(files) == 22 and set(files) == _files()
    for name, each in released.RELEASED.items():
        assert ("/edm-" in name) == (each.kind == "diffusion")
        assert not each.sigmas or each.sigmas[0] == 80 and "edm" not in name
        assert set(each.fid) <= ({35, 79} if "edm" in name else {1, 2})


def test_every_name_is_in_the_docs():
    text = (ROOT / "docs" / "checkpoints.md").read_text()
    listed: set[str] = set()
    for line in text.splitlines():
        if line.startswith("| `openai/"):
            first, *endings = re.findall(r"`([^`]+)`", line.split("|")[1])
            listed.add(first)
            for (
                ending
            ) in endings:  # "openai/a-b, -c" stands for openai/a-b and openai/a-c.
                stem = first if ending.startswith("openai/") else _stem(first)
                listed.add(ending if stem is first else stem + ending)
    assert listed == set(released.RELEASED)


def _stem(name):
    return "-".join(name.split("-")[:2])


def test_classes_of_imagenet_have_names():
    names = imagenet.class_names()
    assert len(names) == len({name.lower() for name in names}) == 1000
    known = {0: "tench", 207: "golden retriever", 281: "tabby", 999: "toilet tissue"}
    assert {number: names[number] for number in known} == known
    assert (names[134], names[517]) == ("crane (bird)", "crane (machine)")


def test_labels_of_imagenet_have_two_names():
    names = imagenet.class_names()
    folders = sorted(imagenet.other_names()[name] for name in names)
    assert label_number("tabby", names) == label_number("tabby", folders)
    assert label_number("n02123045", names) == 281
    assert label_number(7, names) == 7
    with pytest.raises(jcm.JcmError, match=r"'cat' is unknown: .* \(1000 in all\)"):
        label_number("cat", names)
