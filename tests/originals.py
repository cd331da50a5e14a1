"""Checkpoints as the original JAX code wrote them, of the small network."""

import dataclasses
import pathlib

import golden
import numpy as np
from flax import serialization

from jcm.pretrained import released


def nested(flat):
    """Dictionaries of arrays from arrays by slash-separated path."""
    tree = {}
    for name, array in flat.items():
        *folders, leaf = name.split("/")
        branch = tree
        for folder in folders:
            branch = branch.setdefault(folder, {})
        branch[leaf] = np.asarray(array)
    return tree


def state(with_target=False):
    """A checkpoint as the original wrote it; the arrays of others are zero."""
    tree = nested(
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


def write(path: pathlib.Path, with_target: bool = False) -> pathlib.Path:
    """A file of such a state."""
    path.write_bytes(serialization.to_bytes(state(with_target)))
    return path


def check(model) -> None:
    """The outputs of a model of these weights are those of the original."""
    forward = golden.arrays("A_cfg1_forward.npz")
    found = model.denoise(forward["x"], forward["t"])
    kind = "distiller" if model.kind == "consistency" else "denoiser"
    for image in range(len(found)):
        assert golden.relative(found[image], forward[kind][image]) < 1e-4


def publish(monkeypatch) -> None:
    """Two published names stand for files as small as these."""
    for name in ("openai/cd-cifar10-lpips", "openai/edm-cifar10"):
        each = dataclasses.replace(released.RELEASED[name], image_size=16)
        monkeypatch.setitem(released.RELEASED, name, each)
