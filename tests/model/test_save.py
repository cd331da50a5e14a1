"""Tests of saving models as folders, and of loading them again."""

import dataclasses
import hashlib
import json

import jax
import numpy as np
import originals
import pytest

import jcm
from jcm.runtime import hashes


@pytest.fixture
def file(tmp_path):
    return originals.write(tmp_path / "checkpoint_2")


def test_a_saved_model_is_the_same_to_the_bit(student, file, tmp_path):
    for name, model in (
        ("digits", jcm.load(student[1])),
        ("original", jcm.load(file, image_size=16)),
    ):
        jcm.save(model, tmp_path / name, licence="apache-2.0", notes="Of digits.")
        again = jcm.load(tmp_path / name)
        jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
        assert again.denoiser.network.arch == model.denoiser.network.arch
        assert (again.kind, again.step) == (model.kind, model.step)
        assert again.config == model.config
        modes = {path.stat().st_mode for path in (tmp_path / name).iterdir()}
        assert len(modes) == 1  # All files have the same permissions.
        card = (tmp_path / name / "README.md").read_text()
        assert 'license: "apache-2.0"' in card and "Of digits." in card
    with pytest.raises(jcm.JcmError, match="exists already: name a new folder"):
        jcm.save(model, tmp_path / name)


@pytest.mark.parametrize("to", ["jcm", "diffusers"])
def test_a_model_that_could_not_be_loaded_is_not_saved(student, tmp_path, to):
    model = jcm.load(student[1])

    def changed(**changes):
        config = model.config.copy_and_resolve_references()
        config.update_from_flattened_dict(changes)
        return config

    for config, message in (
        (changed(**{"model.nf": 16}), "cannot be saved .tensor 'conv_in/bias' of sha"),
        (changed(**{"noise.sigma_max": 1e-4}), "cannot be saved .config.noise"),
        (changed(**{"noise.sigma_min": 0.01}), "since its config describes another: c"),
        (changed(**{"loss.num_scales": 5}), "since its config describes another: cre"),
    ):
        other = jcm.Model(model.denoiser, model.params, config)
        with pytest.raises(jcm.JcmError, match=message):
            jcm.save(other, tmp_path / "folder", to=to)
    assert not (tmp_path / "folder").exists()


def test_the_card_of_a_published_model_names_its_source(file, tmp_path, monkeypatch):
    originals.publish(monkeypatch)
    monkeypatch.setenv("JCM_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "cache" / "pretrained" / "openai" / "cd-cifar10-lpips"
    place.mkdir(parents=True)
    (place / "checkpoint_80").write_bytes(file.read_bytes())
    model = jcm.load("openai/cd-cifar10-lpips")
    jcm.save(model, tmp_path / "folder", licence="apache-2.0")
    card = (tmp_path / "folder" / "README.md").read_text()
    for text in (
        'license: "apache-2.0"',
        "3.55 in 1 network evaluation",
        "CIFAR-10. Method: consistency distillation.",
    ):
        assert text in card
    assert "Training" not in card  # The project has not trained it.
    again = jcm.load(tmp_path / "folder")
    assert again.about == dataclasses.replace(model.about, licence="apache-2.0")
    stored = json.loads((tmp_path / "folder" / "config.json").read_text())["config"]
    assert stored.keys() == {"method", "noise", "model", "loss", "sample", "data"}
    assert stored["data"] == {"image_size": 16, "channels": 3}


def test_the_command_converts_and_reports_mistakes(file, tmp_path, command):
    done = command(
        "convert", file, tmp_path / "model", "--image_size=16", "--licence=mit"
    )
    assert done.code == 0, done.err
    model = jcm.load(tmp_path / "model")
    jax.tree.map(
        np.testing.assert_array_equal,
        model.params,
        jcm.load(file, image_size=16).params,
    )
    assert 'license: "mit"' in (tmp_path / "model" / "README.md").read_text()
    for arguments, message in (
        ([file], "arguments are required: FOLDER: see jcm convert --help"),
        ([file, tmp_path / "model"], "exists already"),
        ([tmp_path / "nothing", tmp_path / "new"], "there is no "),
        ([file, tmp_path / "new", "--image_size=17"], "is not divisible by"),
        (
            [tmp_path / "model", tmp_path / "new", "--to=diffusers"],
            "diffusers has no NCSN",
        ),
    ):
        done = command("convert", *arguments)
        assert done.code == 1
        assert done.err.splitlines()[-1].startswith("jcm: ")
        assert message in done.err and "Traceback" not in done.err


def _write(folder, name, content):
    """Writes a file into a saved folder, and its hash, as a stranger can do."""
    content = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(content)
    record = folder / "SHA256SUMS"
    known = hashes.read(record, "") | {name: hashlib.sha256(content).hexdigest()}
    hashes.write(record, known)


def test_a_damaged_folder_raises(file, tmp_path):
    place = tmp_path / "model"
    jcm.save(jcm.load(file, image_size=16), place)
    whole = (place / "params.safetensors").read_bytes()
    text = (place / "config.json").read_text()
    _write(place, "params.safetensors", whole[:-5])
    with pytest.raises(jcm.JcmError, match=r"cannot read .*params.safetensors"):
        jcm.load(place)
    _write(place, "params.safetensors", whole)
    for before, after, message in (
        ('"nf": 16', '"nf": 32', r"tensor 'conv_in/bias' of shape \(16,\)"),
        ('"nf"', '"width"', "config.model.width is unknown"),
        ('"sigma_min": 0.002', '"sigma_min": "x"', "noise.sigma_min='x' must be a num"),
        ('"step": 20000', '"step": "x"', "step: Expected `int | null`, got `str`"),
        ('"step": 20000', '"step": -1', "step: Expected `int` >= 0"),
        ('"scores": []', '"scores": [5]', r"about.scores\[0\]: Expected `object`, got"),
        ('"notes": ""', '"notes": null', "about.notes: Expected `str`, got `null`"),
        ('"class_names": []', '"class_names": null', "class_names: Expected `array`"),
        ('"trained": false', '"trained": 1', "about.trained: Expected `bool`"),
        (text, "[" * 100_000, "is damaged"),
        (text, text[:100], "is damaged"),
    ):
        assert text.replace(before, after) != text
        _write(place, "config.json", text.replace(before, after))
        with pytest.raises(jcm.JcmError, match=message) as raised:
            jcm.load(place)
        assert str(raised.value).startswith(f"{place / 'config.json'}")
    _write(place, "config.json", text)
    jcm.load(place)
    (place / "config.json").unlink()
    with pytest.raises(jcm.JcmError, match="since it has no config.json"):
        jcm.load(place)


def test_a_flipped_byte_is_detected(student, tmp_path):
    place = tmp_path / "model"
    jcm.save(jcm.load(student[1]), place)
    sums = (place / "SHA256SUMS").read_text().splitlines()
    assert [line[66:] for line in sums] == [
        "README.md",
        "config.json",
        "params.safetensors",
    ]
    for name, first in (("params.safetensors", 0.5), ("config.json", 0)):
        whole = (place / name).read_bytes()
        for at in np.linspace(first * len(whole), len(whole) - 1, 10).astype(int):
            damaged = bytearray(whole)
            damaged[at] ^= 1
            (place / name).write_bytes(damaged)
            with pytest.raises(jcm.JcmError, match=name):
                jcm.load(place)
        (place / name).write_bytes(whole)
    (place / "README.md").write_text("The card may be changed.")
    jcm.load(place)
    (place / "SHA256SUMS").unlink()
    with pytest.raises(jcm.JcmError, match="cannot read .*SHA256SUMS"):
        jcm.load(place)


def test_texts_of_others_have_no_effect_in_a_card(student, tmp_path):
    place, again = tmp_path / "model", tmp_path / "again"
    notes = "[Notes](https://example.org) of *mine*."
    jcm.save(jcm.load(student[1]), place, licence="mit", notes=notes)
    assert f"\n{notes}\n" in (place / "README.md").read_text()
    record = json.loads((place / "config.json").read_text())
    evil = "<script>|\n# Licence\x1b[2J `` [a](b)"
    record["config"]["data"]["name"] = evil
    record["about"] |= {"software": evil, "licence": evil, "notes": f"{evil}\n```"}
    record["about"]["scores"] = [
        {"model": evil, "step": 1, "weights": "", "samples": evil, "num_images": 2}
        | {"by": {}, "scores": {evil: 1.0}}
    ]
    _write(place, "config.json", json.dumps(record))
    model = jcm.load(place)
    assert all(line.isprintable() for line in repr(model).splitlines())
    assert len(repr(model).splitlines()) == 2
    jcm.save(model, again)
    card = (again / "README.md").read_text()
    assert card.count("\n## Licence\n") == 1 and "\x1b" not in card
    lines = card.splitlines()
    # They are quoted as they are within a block, whose fence they do not have.
    start, end = (i for i, line in enumerate(lines) if line == "````")
    assert lines[start + 1] == "<script>|" and lines[end - 1] == "```"
    others = "\n".join(lines[4:start] + lines[end:])
    assert "<script>" not in others.replace("```<script>", "").replace(
        "``` <script>", ""
    )
    assert r"| &lt;script&gt;\| # Licence\\x1b\[2J \`\` \[a\](b) | 2 | 1 |" in card
    jcm.save(model, tmp_path / "third", notes=notes)
    assert f"\n{notes}\n" in (tmp_path / "third" / "README.md").read_text()
