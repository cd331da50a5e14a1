"""Checkpoints as the original JAX code wrote them, of the small network."""

import dataclasses
import hashlib
import pathlib

import golden
import jax
import numpy as np
from flax import serialization

from jcm.pretrained import released


def nested(flat):
    """Returns nested dictionaries of arrays that are given by path, as in "a/b"."""
    tree = {}
    for name, array in flat.items():
        *folders, leaf = name.split("/")
        branch = tree
        for folder in folders:
            branch = branch.setdefault(folder, {})
        branch[leaf] = np.asarray(array)
    return tree


def state(with_target=False):
    """Returns a checkpoint like the original's, with few moments of the optimiser."""
    tree = nested(golden.original_params("params_ema"))
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


def write(path: pathlib.Path, with_target: bool = False) -> pathlib.Path:
    """Writes a file of such a state."""
    path.write_bytes(serialization.to_bytes(state(with_target)))
    return path


# SHA-256 of the files that the original code wrote.
_HASHES = {
    False: "b5c39757b6cd3c6c2cafe3931b90a0ca2856f689eb8bab1fe486691330a6010f",
    True: "ddaa4c4bfc6ed32f2526357dae686f3790280ede3cf85cb14b3d85633231634f",
}


def own_file(path: pathlib.Path, with_target: bool) -> pathlib.Path:
    """Writes, byte for byte, a checkpoint that the original code wrote."""
    roles = ("params", *(["target_params"] if with_target else []), "params_ema")
    trees = {role: nested(golden.original_params(role)) for role in roles}
    zeros = jax.tree.map(np.zeros_like, trees["params"])
    state = {
        "step": np.array(20_000, np.int32),
        "lr": np.array(2e-4 if with_target else 4e-4, np.float32),
        "ema_rate": np.array(0.9999, np.float32),
        **trees,
        "model_state": {},
        "opt_state": {
            "0": {"count": np.array(0, np.int32), "mu": zeros, "nu": zeros},
            "1": {},
            "2": {},
        },
        "rng_state": {"0": np.array([4146024105, 967050713], np.uint32), "1": {}},
    }
    content = serialization.to_bytes(state)
    assert hashlib.sha256(content).hexdigest() == _HASHES[with_target]
    path.write_bytes(content)
    return path


def check(model) -> None:
    """Checks that a model with these weights gives the outputs of the original."""
    forward = golden.arrays("A_cfg1_forward.npz")
    found = model.denoise(forward["x"], forward["t"])
    kind = "distiller" if model.kind == "consistency" else "denoiser"
    for image in range(len(found)):
        assert golden.relative(found[image], forward[kind][image]) < 1e-4


def publish(monkeypatch) -> None:
    """Makes two published names expect files of the small network."""
    for name in ("openai/cd-cifar10-lpips", "openai/edm-cifar10"):
        each = dataclasses.replace(released.RELEASED[name], image_size=16)
        monkeypatch.setitem(released.RELEASED, name, each)
