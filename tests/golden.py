"""Golden numbers: inputs and outputs of the original code, from tests/data.

`tests/data/README.md` says what the files hold.
"""

import atexit
import functools
import lzma
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from paths import DATA

from jcm import networks
from jcm.diffusion import precond
from jcm.diffusion.denoiser import Denoiser
from jcm.diffusion.schedules import FixedScales, KarrasGrid
from jcm.methods import distances
from jcm.methods.consistency import Consistency
from jcm.networks import Conditions
from jcm.pretrained import openai_jcm, torch_file

# The small network that the numbers were made with ("cfg1").
CONFIG = {
    "name": "ncsnpp",
    "nf": 16,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (8,),
    "ncsnpp": {
        "embedding_type": "fourier",
        "fourier_scale": 16.0,
        "progressive_input": "residual",
        "fir_kernel": (1.0, 3.0, 3.0, 1.0),
    },
    "dropout": 0.0,
    "dtype": "float32",
    "remat": (),
}


@functools.cache
def path(name: str) -> pathlib.Path:
    """Returns the path of a file of golden numbers, after unpacking it if need be."""
    found = DATA / name
    if found.exists():
        return found
    unpacked = pathlib.Path(_unpacked().name) / name
    unpacked.parent.mkdir(exist_ok=True)
    with lzma.open(DATA / f"{name}.xz") as packed:
        unpacked.write_bytes(packed.read())
    return unpacked


@functools.cache
def _unpacked() -> tempfile.TemporaryDirectory:
    """The folder of unpacked files, which goes when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="jcm_golden_")
    atexit.register(folder.cleanup)  # or Python warns
    return folder


@functools.cache
def arrays(name: str) -> dict[str, np.ndarray | jax.Array]:
    """Returns all arrays of a file."""
    with np.load(path(name)) as file:
        return {key: _to_jax(file[key]) for key in file.files}


def _to_jax(array: np.ndarray) -> np.ndarray | jax.Array:
    """Converts arrays of 32 bits to JAX arrays; JAX has no 64 bits by default."""
    return jnp.asarray(array) if array.dtype.itemsize == 4 else array


def cases(name: str) -> dict[str, dict[str, np.ndarray]]:
    """Returns the arrays of a file, grouped by the first part of their names."""
    grouped = {}
    for key, value in arrays(name).items():
        case, _, rest = key.partition("/")
        grouped.setdefault(case, {})[rest] = value
    return grouped


@functools.cache
def network(**changes) -> networks.Network:
    """Returns the small network, with some settings changed."""
    return networks.create(
        CONFIG | changes, image_size=16, image_channels=3, num_classes=0
    )


class Compiled(networks.Network):
    """A network that is compiled separately from the function that calls it."""

    def __init__(self, network: networks.Network):
        vars(self).update(vars(network))
        self._run = jax.jit(network)

    def __call__(self, *args, **kwargs):
        return self._run(*args, **kwargs)


@functools.cache
def compiled(**changes) -> networks.Network:
    """Returns the same network, compiled once for all functions that call it.

    Losses and samplers do little around the network, so they need not be compiled.
    """
    return Compiled(network(**changes))


def raw(network, params, labels=None):
    """Returns F as a function of (input, c_noise), as a preconditioning takes it."""
    return lambda x, c_noise: network(params, x, Conditions(c_noise, labels))


def from_original(flat: dict[str, np.ndarray | jax.Array]) -> networks.Params:
    """Returns our tree of parameters that are given by original path."""
    flat = {name: np.asarray(array) for name, array in flat.items()}
    return openai_jcm.params(flat, network().arch, network().shapes)


def _plus_noise(init: dict, seed: int, dtype=np.float64) -> dict[str, np.ndarray]:
    """Returns float32 weights: initial ones plus 0.05 N(0, 1), added in `dtype`.

    The weights of the golden networks were made in this way. Only the initial weights
    are stored: they are shared by several sets, and many of them are zero.
    """
    random = np.random.RandomState(seed)
    noise = {
        name: 0.05 * random.standard_normal(np.shape(init[name]))
        for name in sorted(init)
    }
    return {
        name: (np.asarray(init[name]) + noise[name].astype(dtype)).astype(np.float32)
        for name in sorted(init)
    }


_SEEDS = {"params": 101, "params_ema": 201, "target_params": 301}


@functools.cache
def original_params(role: str) -> dict[str, np.ndarray]:
    """Returns a set of parameters of the small network, by original path.

    The role is `params`, `params_ema` or `target_params`. They equal those of the
    original to the bit; `tests/originals.py` checks their hash.
    """
    return _plus_noise(arrays("A_cfg1_init.npz"), _SEEDS[role])


@functools.cache
def params(role: str) -> networks.Params:
    """Returns the same parameters as our tree."""
    return jax.tree.map(jnp.asarray, from_original(original_params(role)))


@functools.cache
def unet_state(variant: str) -> dict[str, np.ndarray]:
    """Returns the `state_dict` of a small PyTorch U-Net, such as "cc_ssn"."""
    if variant == "cc_ssn":
        return torch_file.load(path("G_unet_cc_ssn.pt"))
    init = {
        name.removeprefix("init/"): array
        for name, array in arrays(f"G_unet_{variant}.npz").items()
        if name.startswith("init/")
    }
    return _plus_noise(init, 11, np.float32)


def consistency(cls=Consistency, **changes) -> Consistency:
    """Returns the distillation of the small network that the numbers are of."""
    settings = {
        "denoiser": Denoiser(compiled(), precond.Consistency()),
        "teacher": Denoiser(compiled(), precond.EDM()),
        "grid": KarrasGrid(),
        "scales": FixedScales(18, 0.0),
        "distance": distances.OfPixels(distances.l2),
    }
    return cls(**settings | changes)


def norm(tree) -> float:
    """Returns the Euclidean norm of all numbers of a tree, in float64."""
    leaves = (np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree))
    return float(np.sqrt(sum(np.sum(leaf**2) for leaf in leaves)))


def relative(ours, theirs) -> float:
    """Returns the largest difference, relative to the largest magnitude."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
