"""Tests of checkpoints of others, which open without a config or raise."""

import os
import pathlib
import pickle
import re
import zipfile

import cost
import golden
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import originals
import pytest
import torch_weights
from flax import serialization

import jcm
from jcm.pretrained import flax_file
from jcm.runtime import first_read, hashes


@pytest.fixture
def file(tmp_path):
    return originals.write(tmp_path / "checkpoint_2")


def test_a_checkpoint_of_the_original_opens_without_a_config(file):
    model = jcm.load(file, image_size=16)
    assert (model.kind, model.step) == ("consistency", 20_000)
    assert model.denoiser.network.arch == golden.network().arch
    originals.check(model)
    assert model.sample(1).shape == (1, 16, 16, 3)
    originals.check(jcm.load(file, image_size=16, kind="diffusion", ema="params"))


@pytest.mark.parametrize("with_target", [False, True], ids=["State", "StateWithTarget"])
def test_files_that_the_original_wrote_open(with_target, tmp_path):
    file = originals.own_file(tmp_path / "checkpoint_2", with_target)
    originals.check(jcm.load(file, image_size=16))


def test_weights_are_chosen_by_name(file, tmp_path):
    with pytest.raises(jcm.JcmError, match="the file has no target_params"):
        jcm.load(file, image_size=16, ema="target_params")
    with pytest.raises(jcm.JcmError, match="ema='ema' is unknown: use one of params_e"):
        jcm.load(file, image_size=16, ema="ema")
    other = tmp_path / "with_target"
    other.write_bytes(serialization.to_bytes(originals.state(with_target=True)))
    assert jcm.load(other, image_size=16, ema="target_params").step == 20_000


def test_a_changed_byte_and_an_absurd_weight_are_noticed(file, monkeypatch):
    jcm.load(file, image_size=16)
    identity = hashes.identity(file)
    content = bytearray(file.read_bytes())
    kernel = originals.state()["params_ema"]["Conv_0"]["kernel"]
    content[content.rindex(kernel.tobytes()) + 100] ^= 1
    file.write_bytes(content)
    # A disk changes a byte, and not the identity of the file.
    with monkeypatch.context() as patch:
        patch.setattr(hashes, "identity", lambda _: identity)
        patch.setattr(first_read, "_compared", set())
        with pytest.raises(jcm.JcmError, match=f"{file} is damaged: .*copy it again, "):
            jcm.load(file, image_size=16)
    jcm.load(file, image_size=16)
    tree = originals.state()
    layer = tree["params_ema"]["Conv_0"]
    layer["bias"] = np.full_like(layer["bias"], -3e6)
    file.write_bytes(serialization.to_bytes(tree))
    message = f"^{file}: the weights conv_in/bias have values up to 3e.06, and more "
    with pytest.raises(jcm.JcmError, match=message):
        jcm.load(file, image_size=16)


def _packed(shape, dtype, content):
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, content)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a complete checkpoint of flax"),
        (b"\x81 no map", "not a complete checkpoint of flax"),
        (msgpack.packb({"params_ema": {"a": 3}}), "entry 'a' is a int, not an array"),
        (msgpack.packb({"other": 3}), "the file has no params_ema"),
        (msgpack.packb({"params_ema": 3}), "entry 'params_ema' is a int, not a tree"),
        (msgpack.packb({"params_ema": {3: 4}}), "not a complete checkpoint of flax"),
        (
            msgpack.packb({"params_ema": {"a": _packed((1,), "object", b"8" * 8)}}),
            "an array of 'object'",
        ),
        (
            msgpack.packb({"params_ema": {"a": _packed((9,), "float32", b"8" * 8)}}),
            "not a complete checkpoint",
        ),
        (
            msgpack.packb({"params_ema": {"a": msgpack.ExtType(9, b"8")}}),
            "an entry of type 9",
        ),
        (
            msgpack.packb({"params_ema": {"a": _packed((2,), "float32", b"8" * 8)}}),
            "the file has no tensor 'GaussianFourierProjection_0/W'",
        ),
    ],
)
def test_files_of_other_content_raise(tmp_path, content, message):
    path = tmp_path / "checkpoint"
    path.write_bytes(content)
    with pytest.raises(jcm.JcmError, match=message):
        jcm.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x81\xa6params" + b"\x81\xa1a" * 900 + b"\xc0", "too many entries"),
        (b"\x81\xaaparams_ema\xdd\xff\xff\xff\xff" + b"\xc0" * 21_000, "too many ent"),
        (b"\x81\xaaparams_ema\xdf\xff\xff\xff\xff", "truncated"),
        (b"\x81\xaaparams_ema\xc6\xff\xff\xff\xff", "a text of 4,294,967,295 bytes"),
        (b"\x81\xa6params\xc6\xff\xff\xff\xff", "truncated"),
        (b"\x81\xda\x01\x01" + b"a" * 257 + b"\xc0", "a text of 257 bytes"),
        (
            msgpack.packb(
                {"params_ema": {"a": _packed((1,) * 9, "float32", b"8" * 4)}}
            ),
            "more than 8 dimensions",
        ),
        (
            msgpack.packb({"params_ema": {"a": _packed((2**62, 4), "int8", b"")}}),
            "has 0 bytes",
        ),
        (
            msgpack.packb({"params_ema": {"a": _packed((-1,), "float32", b"8" * 4)}}),
            "has 4 bytes",
        ),
    ],
    ids=range(9),
)
def test_a_small_file_of_flax_cannot_take_much(tmp_path, content, message):
    path = tmp_path / "checkpoint"
    path.write_bytes(content)
    with cost.limited(path), pytest.raises(jcm.JcmError, match=message):
        jcm.load(path)


def test_a_truncated_or_extended_file_raises(file):
    whole = file.read_bytes()
    for content in (whole[:-1], whole[: len(whole) // 2], whole + b"\x00"):
        file.write_bytes(content)
        with pytest.raises(jcm.JcmError, match="not a complete checkpoint of flax"):
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
def test_the_error_names_a_tensor_that_does_not_fit(tmp_path, change, message):
    state = originals.state()
    change(state["params_ema"])
    path = tmp_path / "checkpoint"
    path.write_bytes(serialization.to_bytes(state))
    with pytest.raises(jcm.JcmError, match=message):
        jcm.load(path, image_size=16)


def test_impossible_arguments_raise(file, tmp_path, student):
    for name, hints, message in (
        (file, {"kind": "gan"}, "kind='gan': use one of diffusion, consistency"),
        (file, {"image_size": 15}, "image_size=15 is not divisible by 2"),
        (file, {"image_size": -16}, "image_size=-16 must be at least 1"),
        (file, {"num_heads": 3}, "drop num_heads, which files of this format do not"),
        (file, {"size": 3}, "load has no argument 'size': use image_size"),
        ("cd_imagenet.pt", {}, "there is no cd_imagenet.pt: name a workdir, a file"),
        (file, {"step": 3}, "is a single checkpoint: drop step=3"),
        (student[1], {"kind": "diffusion"}, "is a workdir: drop kind='diffusion'"),
    ):
        with pytest.raises(jcm.JcmError, match=message):
            jcm.load(name, **hints)
    workdir = student[1]
    picture = tmp_path / "grid.png"
    picture.touch()
    for path, message in (
        (workdir / "run.json", f"a model, not a model: did you mean {workdir}?"),
        (workdir / "checkpoints", f"a model, not a model: did you mean {workdir}?"),
        (
            tmp_path / "grit.png",
            f"there is no {tmp_path}/grit.png: did you mean {picture}",
        ),
        (picture, f"{picture} is not a model: name a workdir, a file or"),
    ):
        with pytest.raises(jcm.JcmError, match=re.escape(message)):
            jcm.load(path)
    pickled = tmp_path / "edm-cifar10-32x32-uncond-vp.pkl"
    pickled.write_bytes(b"\x80\x04")
    with pytest.raises(jcm.JcmError, match=r"\.pkl runs code when it is opened"):
        jcm.load(pickled)


def test_only_the_requested_parts_are_decoded(file, monkeypatch):
    decoded = []
    decode = flax_file._Reader._array

    def record(reader):
        decoded.append(decode(reader))
        return decoded[-1]

    monkeypatch.setattr(flax_file._Reader, "_array", record)
    flax_file.load(file, ("params_ema",))
    assert len(decoded) == 157


class _Attack:
    def __reduce__(self):
        return os.system, ("touch BROKEN",)


@pytest.mark.parametrize("content", [_Attack(), {"w": _Attack()}, [eval]])
def test_code_in_a_file_never_runs(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("zip.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, 2))
    pathlib.Path("bare.pt").write_bytes(pickle.dumps(content, 2))
    for name in ("zip.pt", "bare.pt"):
        with pytest.raises(
            jcm.JcmError, match=f"{name} is not a complete PyTorch file"
        ):
            jcm.load(name)
    assert not pathlib.Path("BROKEN").exists()


def test_an_unknown_label_raises(tmp_path):
    path = torch_weights.save(tmp_path / "cd_small.pt", golden.unet_state("cc_ssn"))
    model = jcm.load(path, image_size=16, head_channels=16)
    assert model.kind == "consistency" and len(model.class_names) == 10
    three = model.sample(2, sigmas=(80.0,), labels=[3, "3"])
    for labels in (3, "3"):
        np.testing.assert_array_equal(
            model.sample(2, sigmas=(80.0,), labels=labels), three
        )
    for label, message in (
        (10, "0 to 9"),
        (-1, "0 to 9"),
        ("tench", "'tench' is unknown: the classes are 0, 1, 2"),
    ):
        with pytest.raises(jcm.JcmError, match=message):
            model.sample(1, labels=[label])
    jcm.save(model, tmp_path / "folder", to="diffusers")
    again = jcm.load(tmp_path / "folder")
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9])
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_the_error_about_a_partial_download_says_so(tmp_path, share, suffix):
    whole = torch_weights.save(tmp_path / "whole.pt", {"w": np.zeros((99, 9))})
    content = whole.read_bytes()
    path = tmp_path / f"half{suffix}"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(
        jcm.JcmError, match="half.* is not a complete PyTorch file of wei"
    ):
        jcm.load(path)


def _changes(tensors, random):
    """Yields the same tensors with one of them missing or of another shape."""
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


@pytest.mark.parametrize("form", ["jax", "pytorch"])
def test_any_damaged_tensor_is_an_error_of_one_line(tmp_path, form):
    random = np.random.RandomState(0)
    if form == "jax":
        tensors = golden.original_params("params_ema")
    else:
        tensors = golden.unet_state("cc_ssn")
    path = tmp_path / ("checkpoint" if form == "jax" else "cd.pt")
    hints = {"image_size": 16}
    if form == "pytorch":
        hints["head_channels"] = 16
    for _ in range(6):
        for what, found in _changes(tensors, random):
            if form == "jax":
                content = serialization.to_bytes(
                    {"params_ema": originals.nested(found)}
                )
                path.write_bytes(content)
            else:
                torch_weights.save(path, found)
            with pytest.raises(jcm.JcmError, match="tensor|entry|complete") as caught:
                jcm.load(path, **hints)
            assert "\n" not in str(caught.value), what
