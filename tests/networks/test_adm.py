"""Tests of ADM against golden numbers and the tensors of the published files."""

import functools
import itertools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcm import config as config_lib
from jcm import networks
from jcm.diffusion import ode, precond
from jcm.diffusion.denoiser import Denoiser
from jcm.diffusion.schedule import ode_schedule
from jcm.diffusion.schedules import AdaptiveScales, KarrasGrid
from jcm.methods import Batch, Frozen
from jcm.methods.edm import EDM
from jcm.networks import Conditions
from jcm.pretrained import openai_adm, torch_file
from jcm.runtime.errors import JcmError

_CONFIG = {
    "name": "adm",
    "nf": 32,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (8,),
    "dropout": 0.0,
    "dtype": "float32",
    "remat": (),
    "adm": {
        "num_heads": 0,
        "head_channels": 16,
        "time_scale": 1000.0,
        "scale_shift_norm": True,
        "resblock_updown": True,
    },
}


def _state(variant):
    return dict(golden.unet_state(variant))


def _channels_last(array):
    return jnp.transpose(array, (0, 2, 3, 1))


@functools.cache
def _loaded(variant):
    state = _state(variant)
    arch = openai_adm.architecture(state, image_size=16, head_channels=16)
    network = golden.Compiled(networks.build(arch))
    return network, openai_adm.params(state, arch, network.shapes)


@pytest.mark.parametrize("variant", ["cc_ssn", "uc_ssn_noupdown"])
def test_outputs_equal_the_original(variant):
    arrays = golden.arrays(f"G_unet_{variant}.npz")
    network, params = _loaded(variant)
    labels = jnp.asarray(arrays["y"], jnp.int32) if variant == "cc_ssn" else None
    run = golden.raw(network, params, labels)
    net_x, x = (_channels_last(arrays[name]) for name in ("net_x", "x"))
    ours = {
        "raw": run(net_x, jnp.log(arrays["t"]) / 4),
        "denoiser": precond.EDM()(run, x, arrays["t"]),
        "consistency": precond.Consistency()(run, x, arrays["t"]),
    }
    for name, value in ours.items():
        theirs = _channels_last(arrays[name])
        for image in range(len(value)):  # Each noise level has its own scale.
            assert golden.relative(value[image], theirs[image]) < 1e-4


@functools.cache
def _denoiser(kind):
    """Returns the parameters of the class-conditional network, labels, and D or f."""
    network, params = _loaded("cc_ssn")
    labels = jnp.asarray(golden.arrays("G_unet_cc_ssn.npz")["y"][:2], jnp.int32)
    denoiser = Denoiser(network, kind)
    return params, labels, denoiser


def test_one_and_several_steps_equal_the_original():
    params, labels, denoiser = _denoiser(precond.Consistency())
    step = functools.partial(
        denoiser.precond.step, denoiser.raw(params, labels), solver="consistency"
    )
    cases = golden.cases("G_samplers_losses.npz")
    for name in ("onestep", "multistep"):
        case = cases[name]
        grid = KarrasGrid().sigmas(int(case["steps"]))
        sigmas = [grid[i] for i in case.get("ts", [0])]
        noise = [_channels_last(z) for z in case["noise"]]
        x, after = sigmas[0] * noise[0], [*sigmas[1:], denoiser.precond.floor]
        for i, (sigma, sigma_next) in enumerate(zip(sigmas, after, strict=True)):
            z = noise[i + 1] if i + 1 < len(noise) else jnp.zeros_like(x)
            levels = jnp.float32(sigma), jnp.float32(sigma_next)
            x, _ = step(x, *levels, z)
        ours = jnp.clip(x, -1, 1)
        assert golden.relative(ours, _channels_last(case["sample"])) < 1e-3


def test_heun_equals_the_original():
    params, labels, denoiser = _denoiser(precond.EDM())
    case = golden.cases("G_samplers_losses.npz")["heun"]

    def clipped(x, sigma):  # The original sampler clips.
        return jnp.clip(denoiser(params, x, sigma, labels), -1, 1)

    sigmas = ode_schedule(KarrasGrid(), int(case["steps"]), "heun").sigmas
    x = 80 * _channels_last(case["noise"][0])
    for sigma, sigma_next in itertools.pairwise(sigmas):
        levels = jnp.full(len(x), sigma), jnp.full(len(x), sigma_next)
        x = ode.step(clipped, x, *levels, solver="heun" if sigma_next else "euler")
    ours = jnp.clip(x, -1, 1)
    assert golden.relative(ours, _channels_last(case["sample"])) < 1e-3


@functools.cache
def _moved(seed):
    """Returns the other weights that the golden losses were made with."""
    state = {
        name: array
        + (0.03 * np.random.RandomState(seed).standard_normal(array.shape)).astype("f4")
        for name, array in _state("cc_ssn").items()
    }
    network, _ = _loaded("cc_ssn")
    return openai_adm.params(state, network.arch, network.shapes)


def _batch():
    arrays = golden.arrays("G_unet_cc_ssn.npz")
    images = _channels_last(arrays["clean"])
    keys = jax.random.split(jax.random.key(0), len(images))
    labels = jnp.asarray(arrays["y"], jnp.int32)
    return Batch(images, labels, keys, jnp.arange(len(images))), _channels_last(
        arrays["z"]
    )


@pytest.mark.parametrize("kind", ["cd", "ct"])
def test_losses_equal_the_original(kind):
    network, params = _loaded("cc_ssn")
    case = golden.cases("G_samplers_losses.npz")[f"loss_{kind}_l2_N18"]
    method = golden.consistency(
        denoiser=Denoiser(network, precond.Consistency()),
        teacher=Denoiser(network, precond.EDM()) if kind == "cd" else None,
    )
    batch, noise = _batch()
    frozen = Frozen(_moved(31), {"diffusion": _moved(32)})
    index = jnp.asarray(case["indices"], jnp.int32)

    def loss(params):
        each = method.loss_at(params, frozen, batch, index, jnp.int32(18), noise)
        return jnp.mean(each), each

    gradient, each = jax.grad(loss, has_aux=True)(params)
    np.testing.assert_allclose(each, case["per_sample"], rtol=1e-4)
    np.testing.assert_allclose(golden.norm(gradient), case["grad_norm"], rtol=1e-3)


def test_the_denoising_loss_equals_the_original():
    network, params = _loaded("cc_ssn")
    case = golden.cases("G_samplers_losses.npz")["edm_karras"]
    batch, noise = _batch()
    method = EDM(Denoiser(network, precond.EDM()))
    sigma = golden.arrays("G_unet_cc_ssn.npz")["t"]
    ours = method.loss_at(params, batch, sigma, noise)
    # The original takes the mean over the pixels, we take the sum.
    np.testing.assert_allclose(ours / noise[0].size, case["mse"], rtol=1e-4)


def test_the_curriculum_of_imagenet_equals_the_original():
    cases = golden.arrays("G_samplers_losses.npz")
    config = config_lib.load("configs/imagenet64_ct.py")
    loss = config.loss
    scales = AdaptiveScales(
        loss.start_scales, loss.end_scales, loss.start_ema, config.train.num_steps
    )
    for step, (mu, count) in zip(
        cases["imagenet64_ct_steps"], cases["imagenet64_ct_ema_scales"], strict=True
    ):
        found = scales(jnp.int32(step))
        assert (int(found[0]), float(found[1])) == (count, pytest.approx(mu, rel=1e-5))


def test_the_published_file_is_the_same_network():
    arch = openai_adm.architecture(
        torch_file.load(golden.path("G_unet_cc_ssn.pt")),
        image_size=16,
        head_channels=16,
    )
    created = networks.create(_CONFIG, image_size=16, image_channels=3, num_classes=10)
    assert arch == created.arch


@functools.cache
def _published():
    """The published names and shapes, by the first word of their header."""
    found = {}
    for part in golden.path("keys_released_unets.txt").read_text().split("== ")[1:]:
        header, *lines = part.strip().splitlines()
        shapes = (line.split("\t") for line in lines)
        found[header.split()[0]] = {
            name: np.broadcast_to(
                np.float32(0), [int(n) for n in shape[1:-1].split(",")]
            )
            for name, shape in shapes
        }
    return found


@pytest.mark.parametrize(
    ("name", "size", "count"),
    [("imagenet64", 64, 295_899_267), ("lsun256", 256, 526_304_771)],
)
def test_published_networks_have_these_tensors(name, size, count):
    state = _published()[name]
    arch = openai_adm.architecture(state)
    assert arch.image_size == size and arch.head_channels == 64
    arch.check()
    network = networks.build(arch)
    assert networks.count(network.shapes) == count
    openai_adm.params(state, arch, network.shapes)  # It raises if a tensor differs.


@pytest.mark.parametrize("name", ["imagenet64", "lsun256"])
def test_the_configs_describe_the_published_networks(name):
    published = openai_adm.architecture(_published()[name])
    for method in ("edm", "cd", "ct"):
        config = config_lib.load(f"configs/{name}_{method}.py")
        fields = config.model.to_dict()
        fields |= {"dropout": 0.0, "dtype": "float32", "remat": ()}
        classes = 1000 if fields.pop("class_conditional") else 0
        created = networks.architecture(
            fields,
            image_size=config.data.image_size,
            image_channels=3,
            num_classes=classes,
        )
        assert created == published


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("out.0.bias"), "tensor 'out.0.bias' is missing"),
        (lambda s: s.update(extra=np.zeros(3)), "tensor 'extra' has no place"),
        (
            lambda s: s.update({"out.2.bias": np.zeros(6)}),
            r"tensor 'out.2.bias' of shape \(6,\) has no place",
        ),
        (lambda s: s.pop("input_blocks.0.0.weight"), "a file of a known network"),
        (lambda s: s.pop("input_blocks.1.0.out_layers.3.bias"), "is missing"),
    ],
)
def test_the_error_about_a_wrong_file_names_the_tensor(change, message):
    state = _state("uc_ssn_noupdown")
    change(state)
    with pytest.raises(JcmError, match=message):
        arch = openai_adm.architecture(state, image_size=16, head_channels=16)
        network = networks.build(arch)
        openai_adm.params(state, arch, network.shapes)


def test_the_error_about_an_unknown_image_size_asks_for_it():
    with pytest.raises(JcmError, match="pass image_size="):
        openai_adm.architecture(_state("cc_ssn"))


def test_a_new_network_gives_zeros_and_uses_its_labels():
    network = networks.create(_CONFIG, image_size=16, image_channels=3, num_classes=3)
    params = network.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    run = jax.jit(network)
    given = Conditions(jnp.zeros(2), jnp.array([0, 1]))
    assert not run(params, x, given).any()
    noise = jax.random.key(2)
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(noise, p.shape), params)
    a = run(params, x, given)
    b = run(params, x, given._replace(labels=jnp.array([0, 2])))
    np.testing.assert_array_equal(a[0], b[0])
    assert golden.relative(a[1], b[1]) > 1e-3
    with pytest.raises(JcmError, match="the network has 3 classes: pass labels"):
        jax.eval_shape(network, params, x, Conditions(jnp.zeros(2)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_channels": 48}, "head_channels=48 does not divide 64 channels"),
        ({"head_channels": 0, "num_heads": 3}, "num_heads=3 does not divide 64"),
        ({"num_heads": 2}, "num_heads=2 and head_channels=16: set one above 0 and"),
        ({"head_channels": 0}, "num_heads=0 and head_channels=0: set one above 0 and"),
    ],
)
def test_an_impossible_number_of_heads_raises(changes, message):
    config = _CONFIG | {"adm": _CONFIG["adm"] | changes}
    with pytest.raises(JcmError, match=message):
        networks.create(config, image_size=16, image_channels=3, num_classes=0)
