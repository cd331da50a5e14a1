"""Tests of the networks of NVlabs/edm against another PyTorch implementation.

`nvlabs_edm.npz` and `keys_nvlabs_edm.txt` were made with the SongUNet and DhariwalUNet
of nvidia-modulus 0.5.0 (Apache-2.0), with weights drawn as `_state` draws them.
"""

import golden
import jax
import numpy as np
import pytest
import torch_weights

import jcm
from jcm import networks


def _state(name):
    """Returns the state dict of a small NCSN++, DDPM++ or ADM with random weights."""
    random, state = np.random.RandomState(7), {}
    for line in golden.path("keys_nvlabs_edm.txt").read_text().splitlines():
        network, key, sizes = (line + " ").split(" ")[:3]
        if network != name:
            continue
        shape = tuple(int(size) for size in sizes.split(",") if size)
        if key.endswith("resample_filter"):
            taps = np.asarray([1, 3, 3, 1] if shape[-1] == 4 else [1, 1], np.float32)
            state[key] = (np.outer(taps, taps) / taps.sum() ** 2).reshape(shape)
            continue
        values = random.standard_normal(shape)
        if key.endswith("map_noise.freqs"):
            values = 16 * values
        elif len(shape) > 1:
            values = values / np.sqrt(np.prod(shape[1:]))
        elif key.endswith("weight"):
            values = 1 + 0.05 * values
        else:
            values = 0.05 * values
        state[key] = values.astype(np.float32)
    return state


def _file(tmp_path, state):
    return torch_weights.save(tmp_path / "network.pt", state)


@pytest.mark.parametrize("name", ["ncsnpp", "ddpmpp", "adm"])
def test_the_networks_of_edm_open(name, tmp_path):
    numbers = golden.arrays("nvlabs_edm.npz")
    model = jcm.load(_file(tmp_path, _state(name)))
    arch = model.denoiser.network.arch
    assert (model.kind, arch.image_size, arch.attn_resolutions) == (
        "diffusion",
        8,
        (4,),
    )
    assert networks.describe(arch)["name"] == ("adm" if name == "adm" else "ncsnpp")
    x = np.moveaxis(numbers[f"{name}/x"], 1, -1)
    labels = numbers["labels"] if arch.num_classes else None
    assert (labels is None) == (name == "ncsnpp")
    found = np.moveaxis(np.asarray(model.denoise(x, numbers["sigma"], labels)), -1, 1)
    for image, theirs in zip(found, numbers[f"{name}/denoised"], strict=True):
        assert golden.relative(image, theirs) < 1e-5


def test_files_with_and_without_the_edm_wrapper_are_equal(tmp_path):
    bare = {
        name.removeprefix("model."): array for name, array in _state("ncsnpp").items()
    }
    wrapped = jcm.load(_file(tmp_path, _state("ncsnpp"))).params
    found = jcm.load(_file(tmp_path, bare)).params
    jax.tree.map(np.testing.assert_array_equal, found, wrapped)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "adm",
            lambda s: s.pop("model.out_norm.bias"),
            "'model.out_norm.bias' is missing",
        ),
        (
            "ddpmpp",
            lambda s: s.update({"model.dec.extra": np.zeros(2)}),
            "tensor 'model.dec.extra' has no place",
        ),
        (
            "ncsnpp",
            lambda s: s.update({"model.dec.8x8_aux_conv.bias": np.zeros(4)}),
            r"tensor 'model.dec.8x8_aux_conv.bias' of shape \(4,\) has no place",
        ),
        (
            "ncsnpp",
            lambda s: s.pop("model.enc.8x8_conv.weight"),
            "no tensor 'enc.*_conv.weight': name a file of a known network",
        ),
        (
            "ncsnpp",
            lambda s: s.pop("model.enc.4x4_block0.conv0.bias"),
            "tensor 'model.enc.4x4_block0.conv0.bias' is missing",
        ),
        (
            "ncsnpp",
            lambda s: s.pop("model.enc.4x4_block0.qkv.bias"),
            "tensor 'model.enc.4x4_block0.qkv.bias' is missing",
        ),
    ],
)
def test_the_error_names_a_tensor_that_does_not_fit(tmp_path, name, change, message):
    state = _state(name)
    change(state)
    with pytest.raises(jcm.JcmError, match=f"network.pt: .*{message}"):
        jcm.load(_file(tmp_path, state))


def test_hints_about_what_the_file_states_raise(tmp_path):
    with pytest.raises(
        jcm.JcmError, match="drop image_size, which files of this format do"
    ):
        jcm.load(_file(tmp_path, _state("ncsnpp")), image_size=8)


def test_an_adm_with_other_groups_raises(tmp_path):
    state = _state("adm")
    for name, array in state.items():
        if name.startswith("model.enc.8x8_block0") and len(array) == 128:
            state[name] = array[:96]
    with pytest.raises(jcm.JcmError, match=r"channels belong to no known network"):
        jcm.load(_file(tmp_path, state))
    state["model.map_layer0.weight"] = state["model.map_layer0.weight"][:128]
    with pytest.raises(jcm.JcmError, match=r"\[96, 256\] channels was never pub"):
        jcm.load(_file(tmp_path, state))
