"""Tests of diffusers folders against diffusers 0.42.1 on PyTorch 2.13.

`diffusers.npz` has, for two networks with the weights that `_model` draws, names and
shapes of the tensors of the UNet2DModel that `ConsistencyModelPipeline.from_pretrained`
built from the folder written here, and its one-step images from the noise of `_noise`.
"""

import json
import os

import golden
import jax
import numpy as np
import pytest

import jcm
from jcm import config as config_lib
from jcm import methods
from jcm.model import build
from jcm.pretrained import diffusers_unet
from jcm.runtime import files

# Resampling by residual blocks and by plain layers, with and without classes.
_NETWORKS = {
    "a": {"model.class_conditional": True, "model.attn_resolutions": (8,)},
    "b": {
        "model.attn_resolutions": (16,),
        "model.adm.scale_shift_norm": False,
        "model.adm.resblock_updown": False,
    },
}
_CLASSES = 3
_CONFIGS = (
    ("unet/config.json", 1),
    ("scheduler/scheduler_config.json", 1),
    ("model_index.json", 1),
)


def _config(**changes):
    config = config_lib.base()
    with config.unlocked():
        config.data.image_size = 16
        config.model.name = "adm"
        config.model.nf = 32
        config.model.ch_mult = (1, 2)
        config.model.num_res_blocks = 1
        config.model.adm.head_channels = 16
        config.update_from_flattened_dict(changes)
    return config


def _model(**changes):
    config = _config(**changes)
    network = build.network(config, _CLASSES)
    random = np.random.RandomState(5)

    def draw(path, leaf):
        values = random.standard_normal(leaf.shape)
        if path[-1].key == "kernel":
            values = values / np.sqrt(np.prod(leaf.shape[:-1]))
        elif path[-1].key == "scale":
            values = 1 + 0.05 * values
        elif path[-1].key == "bias":
            values = 0.05 * values
        return values.astype(np.float32)

    params = jax.tree_util.tree_map_with_path(draw, network.shapes)
    denoiser = methods.denoiser(config, network)
    return jcm.Model(denoiser, params, config, [f"class {i}" for i in range(_CLASSES)])


def _noise():
    return np.random.RandomState(3).standard_normal((2, 16, 16, 3)).astype(np.float32)


def _keys(folder):
    tensors = files.read_tensors(
        folder / "unet" / "diffusion_pytorch_model.safetensors"
    )
    return [
        f"{name} {','.join(map(str, array.shape))}"
        for name, array in sorted(tensors.items())
    ]


@pytest.mark.parametrize("name", _NETWORKS)
def test_diffusers_makes_the_same_image(name, tmp_path):
    theirs = golden.cases("diffusers.npz")[name]
    model = _model(**_NETWORKS[name])
    jcm.save(model, tmp_path / "folder", to="diffusers", licence="mit")
    assert _keys(tmp_path / "folder") == list(theirs["keys"])
    labels = np.asarray([2, 0]) if model.class_names else None
    sigma = np.full(2, 80, np.float32)
    # Saving and loading again loses nothing.
    for folder in (tmp_path / "folder", tmp_path / "folder" / "unet"):
        again = jcm.load(folder)
        assert again.kind == "consistency"
        assert again.denoiser.network.arch == model.denoiser.network.arch
        jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    image = np.clip(again.denoise(80 * _noise(), sigma, labels), -1, 1)
    assert np.abs(image - theirs["image"]).max() < 1e-3
    card = (tmp_path / "folder" / "README.md").read_text()
    assert 'license: "mit"' in card and "ConsistencyModelPipeline" in card


def test_noise_levels_come_from_the_scheduler(tmp_path):
    noise = {"noise.sigma_max": 40.0, "noise.sigma_min": 0.01, "sample.sigmas": (40.0,)}
    model = _model(**noise, **{"loss.num_scales": 12})
    jcm.save(model, tmp_path / "folder", to="diffusers")
    again = jcm.load(tmp_path / "folder")
    noise = again.config.noise
    assert (noise.sigma_max, noise.sigma_min) == (40.0, 0.01)
    # The grid from which three and more steps take their levels.
    assert again.denoiser.precond == model.denoiser.precond
    schedules = (
        build.schedule(each.config, each.denoiser, steps=3) for each in (again, model)
    )
    assert len(set(schedules)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.ch_mult": (2, 2)},
            r"not ch_mult=\(2, 2\) and time_scale=1000.0: use another",
        ),
        (
            {"model.adm.time_scale": 1.0},
            "time_scale=1000.0, not .* and time_scale=1.0: use another",
        ),
        (
            {
                "model.adm.head_channels": 0,
                "model.adm.num_heads": 2,
                "model.attn_resolutions": (16,),
            },
            r"heads of one width, not num_heads=2 with heads of \[16, 32\] channels",
        ),
        ({"model.nf": 48}, "channels divisible by 32, not those of nf=48: use"),
        ({"model.name": "ncsnpp"}, "no NCSN.. with an input pyramid"),
        ({"model.num_res_blocks": 0}, "num_res_blocks of at least 1, not 0: use anoth"),
        ({"model.augment_dim": 9}, "a UNet2DModel has augment_dim=0, not 9: use anoth"),
        ({"model.guidance": True}, "a UNet2DModel has guidance=False, not True: use"),
        ({"model.times": 2}, "a UNet2DModel has times=1, not 2: use another format"),
        ({"method": "edm"}, "a pipeline for consistency models only"),
    ],
)
def test_what_diffusers_cannot_express_raises(tmp_path, changes, message):
    with pytest.raises(jcm.JcmError, match=message):
        jcm.save(_model(**changes), tmp_path / "folder", to="diffusers")
    assert not (tmp_path / "folder").exists()


def test_an_unknown_form_raises(tmp_path):
    with pytest.raises(jcm.JcmError, match="to='onnx': use one of jcm, diffusers"):
        jcm.save(_model(), tmp_path / "folder", to="onnx")


def test_a_changed_byte_is_noticed(tmp_path):
    folder = tmp_path / "folder"
    jcm.save(_model(), folder, to="diffusers")
    jcm.load(folder)
    listed = {line[66:] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    files_here = {path for path in folder.rglob("*") if path.is_file()}
    assert listed | {"SHA256SUMS"} == {str(f.relative_to(folder)) for f in files_here}
    for name, count in (("unet/diffusion_pytorch_model.safetensors", 20), *_CONFIGS):
        path = folder / name
        stat, whole = path.stat(), path.read_bytes()
        for at in np.linspace(len(whole) / 2, len(whole) - 3, count).astype(int):
            content = bytearray(whole)
            content[at] ^= 1
            path.write_bytes(content)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            with pytest.raises(jcm.JcmError, match=f"{path}"):
                jcm.load(folder)
        path.write_bytes(whole)
    jcm.load(folder)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "folder"
    jcm.save(_model(), folder, to="diffusers")
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "model_index.json",
            {"_class_name": "DDPMPipeline"},
            "folder is a DDPMPipeline",
        ),
        ("unet/config.json", {"_class_name": "VQModel"}, "VQModel is no UNet2DModel"),
        (
            "unet/config.json",
            {"act_fn": "gelu"},
            "act_fn='gelu' is not supported: an ADM has 'silu'",
        ),
        (
            "unet/config.json",
            {"mid_block_type": None},
            "mid_block_type=None is not supp",
        ),
        (
            "unet/config.json",
            {"sample_size": "x"},
            "the sizes must be whole numbers above 0",
        ),
        (
            "unet/config.json",
            {"block_out_channels": [32, 72]},
            "block_out_channels=.*72",
        ),
        ("unet/config.json", {"layers_per_block": 2}, "tensor '.*' is missing"),
        (
            "unet/config.json",
            {"downsample_type": "conv"},
            "upsample_type=.resnet. is not supp",
        ),
        ("unet/config.json", {"attention_head_dim": 16.0}, "whole numbers above 0"),
        ("unet/config.json", {"num_class_embeds": "3"}, "whole numbers above 0"),
        ("unet/config.json", {"block_out_channels": [0, 0]}, "whole numbers above 0"),
        ("unet/config.json", {"down_block_types": 3}, "does not describe a UNet2DMode"),
        (
            "scheduler/scheduler_config.json",
            {"sigma_min": None},
            "noise levels must be above 0",
        ),
        (
            "scheduler/scheduler_config.json",
            {"num_train_timesteps": 1},
            "num_train_timesteps must be at least 2",
        ),
        ("unet/config.json", None, "config.json is damaged .*: copy it again"),
        (
            "unet/diffusion_pytorch_model.safetensors",
            None,
            "cannot read .*safetensors .*: copy it again",
        ),
        (
            "scheduler/scheduler_config.json",
            None,
            "scheduler_config.json is damaged",
        ),
    ],
)
def test_a_wrong_folder_raises(written, tmp_path, file, change, message):
    folder = tmp_path / "folder"
    for name, content in written.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    if change is None:
        (folder / file).write_bytes((folder / file).read_bytes()[:-9])
    else:
        about = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(about | change))
    with pytest.raises(jcm.JcmError, match=message):
        jcm.load(folder)


def test_hints_and_averages_do_not_apply_to_such_a_folder(written, tmp_path):
    for name, content in written.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(
        jcm.JcmError, match="drop image_size, which files of this format do"
    ):
        jcm.load(tmp_path, image_size=32)
    with pytest.raises(jcm.JcmError, match="one set of weights: drop ema='params'"):
        jcm.load(tmp_path, ema="params")
    tensors = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    # Without the index it is still a network, and a single variant is unambiguous.
    (tmp_path / "model_index.json").unlink()
    (tmp_path / "SHA256SUMS").unlink()  # it does not list the variants
    assert jcm.load(tmp_path).kind == "consistency"
    half = tensors.with_suffix(".fp16.safetensors")
    half.write_bytes(tensors.read_bytes())
    other = half.with_name("diffusion_pytorch_model.ema.safetensors")
    other.write_bytes(tensors.read_bytes())
    assert jcm.load(tmp_path).kind == "consistency"
    content = tensors.read_bytes()
    tensors.unlink()
    with pytest.raises(
        jcm.JcmError, match="keep one, or save the one to use as diffusion_py"
    ):
        jcm.load(tmp_path)
    other.unlink()
    assert jcm.load(tmp_path).kind == "consistency"
    tensors.write_bytes(content)
    with pytest.raises(jcm.JcmError, match="no config beside its tensors: name the fo"):
        jcm.load(tensors)


def test_missing_fields_of_a_config_have_the_defaults_of_diffusers():
    about = diffusers_unet.config_of(_model().denoiser.network.arch)
    short = {
        name: value
        for name, value in about.items()
        if name not in diffusers_unet.DEFAULTS or value != diffusers_unet.DEFAULTS[name]
    }
    assert len(short) < len(about) / 2
    arch = diffusers_unet.architecture(short)
    assert diffusers_unet.config_of(arch) == about


def test_the_error_names_a_missing_part_of_attention(written, tmp_path):
    for name, content in written.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = files.read_tensors(path)
    del tensors["mid_block.attentions.0.to_k.bias"]
    files.write_tensors(path, tensors, {"format": "pt"})
    with pytest.raises(
        jcm.JcmError, match="'mid_block.attentions.0.to_k.bias' is miss"
    ):
        jcm.load(tmp_path)
