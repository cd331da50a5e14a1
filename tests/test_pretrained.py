"""Checkpoints of others: opened with no config, and refused in one line."""

import dataclasses
import json
import os
import pathlib
import pickle
import re
import subprocess
import sys
import zipfile

import golden
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
import torch_weights
from flax import serialization

import jcm
from jcm import build
from jcm import model as model_lib
from jcm.pretrained import flax_file, imagenet, released


def _state(with_target):
    """A checkpoint as the original wrote it; the arrays of others are zero."""
    tree = _tree(
        {
            name.removeprefix("params_ema/"): array
            for name, array in golden.arrays("A_cfg1_params_ema.npz").items()
        }
    )
    zeros = {name: {} for name in tree}
    return {
        "step": np.int32(20_000),
        "lr": np.float32(4e-4),
        "params": tree,
        **({"target_params": tree} if with_target else {}),
        "params_ema": tree,
        "model_state": {},
        "opt_state": {"0": {"count": np.int32(3), "mu": zeros}, "1": {}},
    }


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "checkpoint_2"
    path.write_bytes(serialization.to_bytes(_state(with_target=False)))
    return path


@pytest.fixture(scope="module")
def forward():
    return golden.arrays("A_cfg1_forward.npz")


def _check(model, forward):
    found = model.denoise(forward["x"], forward["t"])
    kind = "distiller" if model.kind == "consistency" else "denoiser"
    for image in range(len(found)):
        assert golden.relative(found[image], forward[kind][image]) < 1e-4


def test_a_checkpoint_of_the_original_opens_with_no_config(file, forward):
    model = jcm.load(file, image_size=16)
    assert (model.kind, model.step) == ("consistency", 20_000)
    assert model.denoiser.network.arch == golden.network().arch
    _check(model, forward)
    assert model.sample(0, 1).shape == (1, 16, 16, 3)
    _check(jcm.load(file, image_size=16, kind="edm", ema="params"), forward)


@pytest.mark.parametrize("name", ["State", "StateWithTarget"])
def test_the_original_s_own_files_open(name, forward):
    file = golden.path(f"checkpoints_cfg1_{name}") / "checkpoint_2"
    _check(jcm.load(file, image_size=16), forward)


def test_weights_are_chosen_by_name(file, tmp_path):
    with pytest.raises(jcm.JcmError, match="it has no target_params"):
        jcm.load(file, image_size=16, ema="target_params")
    with pytest.raises(jcm.JcmError, match="ema='ema' is unknown: use one of params_e"):
        jcm.load(file, image_size=16, ema="ema")
    other = tmp_path / "with_target"
    other.write_bytes(serialization.to_bytes(_state(with_target=True)))
    assert jcm.load(other, image_size=16, ema="target_params").step == 20_000


@pytest.fixture
def small(monkeypatch):
    """Names of files as small as those of the tests."""
    for name in ("openai/cd-cifar10-lpips", "openai/edm-cifar10"):
        each = dataclasses.replace(released.RELEASED[name], image_size=16)
        monkeypatch.setitem(released.RELEASED, name, each)


def test_a_published_name_is_fetched_once(small, file, tmp_path, monkeypatch, forward):
    monkeypatch.setenv("JCM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(released, "_BASE", f"{(tmp_path / 'server').as_uri()}/")
    for name in ("openai/cd-cifar10-lpips", "openai/edm-cifar10"):
        place = tmp_path / "server" / released.RELEASED[name].file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    model = jcm.load("openai/cd-cifar10-lpips")
    assert model.config.sample.sigmas == (80.0, 0.5853)
    _check(model, forward)
    teacher = jcm.load("openai/edm-cifar10")
    assert teacher.kind == "edm" and teacher.config.sample.steps == 18
    assert model_lib.exists("openai/edm-cifar10")
    assert not model_lib.exists("openai/ct-cifar10-lpips")
    for hint in ({"kind": "consistency"}, {"image_size": 64}):
        with pytest.raises(jcm.JcmError, match="openai/edm-cifar10 has"):
            jcm.load("openai/edm-cifar10", **hint)
    place.unlink()
    _check(jcm.load("openai/edm-cifar10"), forward)
    (tmp_path / "cache" / "pretrained" / "openai" / "edm-cifar10").rename(
        tmp_path / "x"
    )
    with pytest.raises(jcm.JcmError, match="elsewhere and put it at .*edm_cifar10_ema"):
        jcm.load("openai/edm-cifar10")
    with pytest.raises(
        jcm.JcmError, match="'openai/gan' is no published model: use op"
    ):
        jcm.load("openai/gan")


def _files():
    """The addresses in the READMEs of the two releases."""
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
        assert ("/edm-" in name) == (each.kind == "edm")
        assert not each.sigmas or each.sigmas[0] == 80 and "edm" not in name
        assert set(each.fid) <= ({35, 79} if "edm" in name else {1, 2})


def test_every_name_is_in_the_readme():
    text = (pathlib.Path(__file__).parent.parent / "README.md").read_text()
    listed: set[str] = set()
    for line in text.splitlines():
        if line.startswith("| `openai/"):
            first, *endings = re.findall(r"`([^`]+)`", line.split("|")[1])
            listed.add(first)
            for ending in endings:  # openai/a-b, -c: openai/a-c
                stem = first if ending.startswith("openai/") else _stem(first)
                listed.add(ending if stem is first else stem + ending)
    assert listed == set(released.RELEASED)


def _stem(name):
    return "-".join(name.split("-")[:2])


def test_a_published_model_knows_where_it_comes_from(
    small, file, tmp_path, monkeypatch
):
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
    assert "Training" not in card  # by us
    again = jcm.load(tmp_path / "folder")
    assert again.about == dataclasses.replace(model.about, licence="apache-2.0")
    told = json.loads((tmp_path / "folder" / "config.json").read_text())["config"]
    assert told.keys() == {"method", "noise", "model", "sample", "data"}
    assert told["data"] == {"image_size": 16, "channels": 3}


def test_classes_of_imagenet_have_names():
    names = imagenet.class_names()
    assert len(names) == len({name.lower() for name in names}) == 1000
    known = {0: "tench", 207: "golden retriever", 281: "tabby", 999: "toilet tissue"}
    assert {number: names[number] for number in known} == known
    assert (names[134], names[517]) == ("crane (bird)", "crane (machine)")


def _packed(shape, dtype, content):
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, content)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a whole checkpoint of flax"),
        (b"\x81 no map", "not a whole checkpoint of flax"),
        (msgpack.packb({"params_ema": {"a": 3}}), "entry 'a' is a int, not an array"),
        (msgpack.packb({"other": 3}), "it has no params_ema"),
        (msgpack.packb({"params_ema": 3}), "entry 'params_ema' is a int, not a tree"),
        (msgpack.packb({"params_ema": {3: 4}}), "not a whole checkpoint of flax"),
        (
            msgpack.packb({"params_ema": {"a": _packed((1,), "object", b"8" * 8)}}),
            "an array of object",
        ),
        (
            msgpack.packb({"params_ema": {"a": _packed((9,), "float32", b"8" * 8)}}),
            "not a whole checkpoint",
        ),
        (
            msgpack.packb({"params_ema": {"a": msgpack.ExtType(9, b"8")}}),
            "an entry of type 9",
        ),
        (
            msgpack.packb({"params_ema": {"a": _packed((2,), "float32", b"8" * 8)}}),
            "no 'GaussianFourierProjection_0/W' in the file",
        ),
    ],
)
def test_other_content_is_refused(tmp_path, content, message):
    path = tmp_path / "checkpoint"
    path.write_bytes(content)
    with pytest.raises(jcm.JcmError, match=message):
        jcm.load(path)


def test_a_file_cut_short_or_too_long_is_refused(file):
    whole = file.read_bytes()
    for content in (whole[:-1], whole[: len(whole) // 2], whole + b"\x00"):
        file.write_bytes(content)
        with pytest.raises(jcm.JcmError, match="not a whole checkpoint of flax"):
            jcm.load(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("Conv_1"), "tensor 'Conv_1/.*' is missing"),
        (
            lambda p: p.update(Extra={"W": jnp.zeros(2)}),
            "tensor 'Extra/W' has no place",
        ),
        (lambda p: p.pop("ResnetBlockBigGANpp_3"), "residual blocks do not make 2 lev"),
        (lambda p: p["Conv_0"].pop("kernel"), "tensor 'Conv_0/kernel' is missing"),
        (
            lambda p: p["AttnBlockpp_0"]["NIN_0"].pop("b"),
            "tensor 'AttnBlockpp_0/NIN_0/b' is missing",
        ),
        (
            lambda p: p["Conv_0"].update(kernel=jnp.zeros(3)),
            r"tensor 'Conv_0/kernel' of shape \(3,\) has no place",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path, change, message):
    state = _state(with_target=False)
    change(state["params_ema"])
    path = tmp_path / "checkpoint"
    path.write_bytes(serialization.to_bytes(state))
    with pytest.raises(jcm.JcmError, match=message):
        jcm.load(path, image_size=16)


def test_what_cannot_be_is_refused(file, tmp_path, student):
    for name, hints, message in (
        (file, {"kind": "gan"}, "kind='gan': use one of edm, consistency"),
        (file, {"image_size": 15}, "does not divide"),
        (file, {"image_size": -16}, "does not divide"),
        (file, {"num_heads": 3}, "num_heads: drop it, such a file tells by itself"),
        (file, {"size": 3}, "size: jcm.load takes no such argument"),
        ("cd_imagenet.pt", {}, "there is no cd_imagenet.pt: name a workdir, a file"),
        (file, {"step": 3}, "is one checkpoint: drop step=3"),
        (student[1], {"kind": "edm"}, "a workdir tells by itself"),
    ):
        with pytest.raises(jcm.JcmError, match=message):
            jcm.load(name, **hints)
    pickled = tmp_path / "edm-cifar10-32x32-uncond-vp.pkl"
    pickled.write_bytes(b"\x80\x04")
    with pytest.raises(jcm.JcmError, match=r"\.pkl runs code when it is opened"):
        jcm.load(pickled)


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
        assert len(modes) == 1  # all for the same eyes
        card = (tmp_path / name / "README.md").read_text()
        assert 'license: "apache-2.0"' in card and "Of digits." in card
    with pytest.raises(jcm.JcmError, match="is there already: name a new folder"):
        jcm.save(model, tmp_path / name)


def test_the_command_converts(file, tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "jcm.pretrained", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=200)

    done = run(file, tmp_path / "model", "--image_size=16", "--licence=mit")
    assert done.returncode == 0, done.stderr
    model = jcm.load(tmp_path / "model")
    jax.tree.map(
        np.testing.assert_array_equal,
        model.params,
        jcm.load(file, image_size=16).params,
    )
    assert 'license: "mit"' in (tmp_path / "model" / "README.md").read_text()
    for arguments, message in (
        ([file], "name a source and a folder"),
        ([file, tmp_path / "model"], "is there already"),
        ([tmp_path / "nothing", tmp_path / "new"], "there is no "),
        ([file, tmp_path / "new", "--image_size=0"], "does not divide"),
        (
            [tmp_path / "model", tmp_path / "new", "--to=diffusers"],
            "diffusers has no NCSN",
        ),
    ):
        done = run(*arguments)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("jcm: ")
        assert message in done.stderr and "Traceback" not in done.stderr


def test_a_damaged_folder_is_refused(file, tmp_path):
    jcm.save(jcm.load(file, image_size=16), tmp_path / "model")
    params = tmp_path / "model" / "params.safetensors"
    whole, about = params.read_bytes(), tmp_path / "model" / "config.json"
    params.write_bytes(whole[:-5])
    with pytest.raises(jcm.JcmError, match="is not a whole model written by jcm.save"):
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
    with pytest.raises(jcm.JcmError, match="config.json is damaged"):
        jcm.load(tmp_path / "model")
    for content in (text.replace('"step": 20000', '"step": "x"'), "[" * 100_000):
        about.write_text(content)
        with pytest.raises(jcm.JcmError, match="is not a whole model written by jcm."):
            jcm.load(tmp_path / "model")
    about.write_text(text[:100])
    with pytest.raises(jcm.JcmError, match="is not a whole model written by jcm.save"):
        jcm.load(tmp_path / "model")


def test_parts_not_asked_for_are_not_read(file, monkeypatch):
    decoded = []
    decode = flax_file._decode

    def record(code, data):
        decoded.append(len(data))
        return decode(code, data)

    monkeypatch.setattr(flax_file, "_decode", record)
    flax_file.load(file, ("params_ema",))
    assert len(decoded) == 157


class _Attack:
    def __reduce__(self):
        return os.system, ("touch BROKEN",)


@pytest.mark.parametrize("content", [_Attack(), {"w": _Attack()}, [eval]])
def test_code_in_a_file_is_never_run(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("zip.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, 2))
    pathlib.Path("bare.pt").write_bytes(pickle.dumps(content, 2))
    for name in ("zip.pt", "bare.pt"):
        with pytest.raises(jcm.JcmError, match=f"{name} is not a whole PyTorch file"):
            jcm.load(name)
    assert not pathlib.Path("BROKEN").exists()


def test_a_label_that_does_not_exist_is_refused(tmp_path):
    state = golden.arrays("G_unet_cc_ssn.npz")
    tensors = {
        name.removeprefix("param/"): np.asarray(array)
        for name, array in state.items()
        if name.startswith("param/")
    }
    path = torch_weights.save(tmp_path / "cd_small.pt", tensors)
    model = jcm.load(path, image_size=16, head_channels=16)
    assert model.kind == "consistency" and len(model.class_names) == 10
    three = model.sample(0, 2, sigmas=(80.0,), labels=[3, "3"])
    for labels in (3, "3"):
        np.testing.assert_array_equal(
            model.sample(0, 2, sigmas=(80.0,), labels=labels), three
        )
    for label, message in (
        (10, "0 to 9"),
        (-1, "0 to 9"),
        ("tench", "'tench' is no class: the model knows 0, 1, 2"),
    ):
        with pytest.raises(jcm.JcmError, match=message):
            model.sample(0, 1, labels=[label])
    jcm.save(model, tmp_path / "folder", to="diffusers")
    again = jcm.load(tmp_path / "folder")
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9])
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_a_half_downloaded_file_is_called_what_it_is(tmp_path, share, suffix):
    whole = torch_weights.save(tmp_path / "whole.pt", {"w": np.zeros((99, 9))})
    content = whole.read_bytes()
    path = tmp_path / f"half{suffix}"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(jcm.JcmError, match="half.* is not a whole PyTorch file of wei"):
        jcm.load(path)


def _changes(tensors, random):
    """The same tensors with one missing, or of another shape."""
    name = sorted(tensors)[random.randint(len(tensors))]
    array = tensors[name]
    changed = {
        "missing": {},
        "flat": {name: array.ravel() if array.ndim != 1 else array[None]},
        "shorter": {name: array[: len(array) // 2]},
        "empty": {name: array[:0]},
        "number": {name: np.zeros((), np.float32)},
        "deeper": {name: array[None]},
    }
    for how, new in changed.items():
        yield (
            f"{name} {how}",
            {key: value for key, value in tensors.items() if key != name} | new,
        )


def _tree(flat):
    tree = {}
    for name, array in flat.items():
        *folders, leaf = name.split("/")
        branch = tree
        for folder in folders:
            branch = branch.setdefault(folder, {})
        branch[leaf] = np.asarray(array)
    return tree


@pytest.mark.parametrize("form", ["jax", "pytorch"])
def test_whatever_tensor_is_damaged_it_is_one_line(tmp_path, form):
    random = np.random.RandomState(0)
    name, prefix = {
        "jax": ("A_cfg1_params_ema.npz", "params_ema/"),
        "pytorch": ("G_unet_cc_ssn.npz", "param/"),
    }[form]
    tensors = {
        name.removeprefix(prefix): np.asarray(array)
        for name, array in golden.arrays(name).items()
        if name.startswith(prefix)
    }
    path = tmp_path / ("checkpoint" if form == "jax" else "cd.pt")
    hints = {"image_size": 16}
    if form == "pytorch":
        hints["head_channels"] = 16
    for _ in range(6):
        for what, found in _changes(tensors, random):
            if form == "jax":
                content = serialization.to_bytes({"params_ema": _tree(found)})
                path.write_bytes(content)
            else:
                torch_weights.save(path, found)
            with pytest.raises(jcm.JcmError, match="tensor|entry|whole") as caught:
                jcm.load(path, **hints)
            assert "\n" not in str(caught.value), what


def test_labels_of_imagenet_go_by_either_name():
    names = imagenet.class_names()
    folders = sorted(imagenet.other_names()[name] for name in names)
    assert build.label_number("tabby", names) == build.label_number("tabby", folders)
    assert build.label_number("n02123045", names) == 281
    assert build.label_number(7, names) == 7
    with pytest.raises(jcm.JcmError, match=r"'cat' is no class: .* \(1000 in all\)"):
        build.label_number("cat", names)
