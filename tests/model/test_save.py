"""Tests of saving models as folders, and of loading them again."""

import dataclasses
import json

import jax
import numpy as np
import originals
import pytest

import jcm


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


def test_a_damaged_folder_raises(file, tmp_path):
    jcm.save(jcm.load(file, image_size=16), tmp_path / "model")
    params = tmp_path / "model" / "params.safetensors"
    whole, about = params.read_bytes(), tmp_path / "model" / "config.json"
    params.write_bytes(whole[:-5])
    with pytest.raises(jcm.JcmError, match="is not a complete model of jcm.save"):
        jcm.load(tmp_path / "model")
    params.write_bytes(whole)
    text = about.read_text()
    about.write_text(text.replace('"nf": 16', '"nf": 32'))
    with pytest.raises(jcm.JcmError, match=r"tensor 'conv_in/bias' of shape \(16,\)"):
        jcm.load(tmp_path / "model")
    about.write_text(text.replace('"nf"', '"width"'))
    with pytest.raises(jcm.JcmError, match="damaged or of another version of jcm"):
        jcm.load(tmp_path / "model")
    about.write_text(text.replace('"sigma_min": 0.002', '"sigma_min": "x"'))
    with pytest.raises(jcm.JcmError, match="noise.sigma_min='x' must be a number"):
        jcm.load(tmp_path / "model")
    for content in (text.replace('"step": 20000', '"step": "x"'), "[" * 100_000):
        about.write_text(content)
        with pytest.raises(jcm.JcmError, match="is not a complete model of jcm.save"):
            jcm.load(tmp_path / "model")
    about.write_text(text[:100])
    with pytest.raises(jcm.JcmError, match="is not a complete model of jcm.save"):
        jcm.load(tmp_path / "model")
