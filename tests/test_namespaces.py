"""Tests of the public namespaces: what they name exists, and their examples run."""

import importlib
import inspect
import re
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jcm
from jcm import config as config_lib
from jcm import diffusion, methods, metrics, networks

_NAMESPACES = (jcm, diffusion, methods, metrics, networks)


def _example(module):
    """The code in the docstring of a module."""
    blocks = re.findall(r"(?:^    .*\n|^\n)+", module.__doc__, re.MULTILINE)
    return textwrap.dedent(max(blocks, key=len))


@pytest.mark.parametrize("module", _NAMESPACES, ids=lambda module: module.__name__)
def test_every_public_name_exists_and_is_described(module):
    assert set(module.__all__) <= set(dir(module))
    for name in set(module.__all__) - {"__version__"}:
        found = getattr(module, name)
        if callable(found) or inspect.ismodule(found):
            assert inspect.getdoc(found), name
        if module is not jcm:
            assert re.search(rf"\b{name}\b", module.__doc__) or callable(found), name
    with pytest.raises(
        AttributeError, match=f"{module.__name__}' has no attribute 'x'"
    ):
        _ = module.x


def test_the_examples_run(monkeypatch):
    config = config_lib.load("configs/cifar10_cd.py:smoke")
    config.model.ch_mult = (1,)  # The examples compile each operation by itself.
    x, c_noise = jnp.zeros((2, 32, 32, 3)), jnp.zeros(2)
    names = {"jax": jax, "config": config, "x": x, "c_noise": c_noise}
    exec(_example(networks), names)
    assert names["out"].shape == x.shape
    names |= {"key": jax.random.key(0)}
    code = _example(diffusion).replace("64", "8").replace("18", "2")
    exec(code, names)
    assert names["images"].shape == (8, 32, 32, 3)
    names |= {
        "scales": diffusion.FixedScales(18, 0.0),
        "distance": methods.distances.OfPixels(methods.distances.l2),
        "frozen": methods.Frozen(teachers={"diffusion": names["params"]}),
        "batch": methods.Batch(
            x, None, jax.random.split(names["key"], 2), jnp.arange(2)
        ),
        "step": jnp.int32(0),
    }
    exec(_example(methods), names)
    assert names["losses"].each.shape == (2,)
    rng = np.random.default_rng(0)
    for name in ("samples", "real"):
        names[name] = rng.integers(0, 256, (8, 32, 32, 3), np.uint8)
    exec(_example(metrics), names)
    assert 0 < names["distance"] < np.inf


def test_a_module_of_a_namespace_is_imported_when_it_is_used():
    found = importlib.import_module("jcm.metrics.frechet")
    assert metrics.frechet is found
