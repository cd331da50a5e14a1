"""Numbers of the original code, in tests/data."""

import functools
import pathlib

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
from jcm.pretrained import openai_jcm

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


def path(name: str) -> pathlib.Path:
    """Where a file of golden numbers is."""
    return DATA / name


@functools.cache
def arrays(name: str) -> dict[str, np.ndarray | jax.Array]:
    """All arrays of one file."""
    with np.load(path(name)) as file:
        return {key: _to_jax(file[key]) for key in file.files}


def _to_jax(array: np.ndarray) -> np.ndarray | jax.Array:
    """Our functions take JAX arrays, which have no 64 bits here."""
    return jnp.asarray(array) if array.dtype.itemsize == 4 else array


def cases(name: str) -> dict[str, dict[str, np.ndarray]]:
    """Arrays grouped by the first part of their names."""
    grouped = {}
    for key, value in arrays(name).items():
        case, _, rest = key.partition("/")
        grouped.setdefault(case, {})[rest] = value
    return grouped


@functools.cache
def network(**changes) -> networks.Network:
    """The small network, with some settings changed."""
    return networks.create(
        CONFIG | changes, image_size=16, image_channels=3, num_classes=0
    )


def from_original(flat: dict[str, np.ndarray | jax.Array]) -> networks.Params:
    """Parameters by original path -> our tree."""
    flat = {name: np.asarray(array) for name, array in flat.items()}
    return openai_jcm.params_from_original(flat, network().arch, network().shapes)


# Each set of parameters is the same initial one plus 0.05 N(0, 1) of its own.
_NOISE_SEEDS = {"params": 101, "params_ema": 201, "target_params": 301}


@functools.cache
def params(role: str) -> networks.Params:
    """`params`, `params_ema` or `target_params` of the small network.

    The excerpt holds `params_ema`; the others follow from it to 1e-6.
    """
    stored = {
        name.removeprefix("params_ema/"): np.asarray(value)
        for name, value in arrays("A_cfg1_params_ema.npz").items()
    }
    flat = {name: value.astype(np.float64) for name, value in stored.items()}
    for seed, sign in ((_NOISE_SEEDS["params_ema"], -1), (_NOISE_SEEDS[role], 1)):
        random = np.random.RandomState(seed)
        for name in sorted(flat):
            noise = random.standard_normal(flat[name].shape)
            flat[name] = flat[name] + sign * 0.05 * noise
    if role == "params_ema":
        flat = stored
    flat = {name: value.astype(np.float32) for name, value in flat.items()}
    return jax.tree.map(jnp.asarray, from_original(flat))


def consistency(cls=Consistency, **changes) -> Consistency:
    """Distillation of the small network as the numbers were made."""
    settings = {
        "model": Denoiser(network(), precond.Consistency()),
        "teacher": Denoiser(network(), precond.EDM()),
        "grid": KarrasGrid(),
        "scales": FixedScales(18, 0.0),
        "distance": distances.OfPixels(distances.l2),
    }
    return cls(**settings | changes)


def norm(tree) -> float:
    """Euclidean norm of all numbers of a tree, in float64."""
    leaves = (np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree))
    return float(np.sqrt(sum(np.sum(leaf**2) for leaf in leaves)))


def relative(ours, theirs) -> float:
    """Largest difference over the largest magnitude."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
