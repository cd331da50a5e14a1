"""Tests of what the benchmarks of data and of single images report."""

import argparse
import dataclasses

import gaussian
import golden
import numpy as np
import pytest

from jcm import config as config_lib
from jcm import networks
from jcm.commands.benchmark import input as input_lib
from jcm.commands.benchmark import latency
from jcm.model.model import Model
from jcm.runtime.compilations import Compilations

_ARCH = dataclasses.replace(golden.network().arch, num_classes=3)


@dataclasses.dataclass(frozen=True)
class _WithClasses(gaussian.ConsistencyFunction):
    """A function in closed form, which compiles at once."""

    network: networks.Network = networks.build(_ARCH)


@pytest.fixture(scope="module")
def model():
    config = config_lib.base("cd")
    config.data.image_size, config.data.channels = _ARCH.image_size, 3
    params = {"unused": np.zeros(1, np.float32)}
    return Model(_WithClasses(), params, config, ("a", "b", "c"), batch_size=64)


def _call_all(model, count, seed, sigma, label):
    """Calls everything that a model does with images."""
    size = _ARCH.image_size
    x = np.full((count, size, size, 3), -0.1, np.float32)
    options = {"seed": seed, "labels": label}
    model.sample(count, sigmas=(sigma,), **options)
    model.denoise(x, sigma, label)
    edit = model.edit
    edit.denoise(x, sigma, labels=label)
    edit.denoise(x, labels=label)
    edit.variations(x, sigma, **options)
    edit.inpaint(x, np.eye(size), sigmas=(sigma, sigma / 2), **options)
    edit.outpaint(x[:, ::2], **options, steps=2)
    edit.colorize(x, **options, steps=2)
    edit.super_resolve(x[:, ::2, ::2], **options, steps=2)
    edit.interpolate([seed, seed + 1], max(count, 2), labels=label)


def test_nothing_is_compiled_for_another_count_seed_sigma_or_label(model):
    _call_all(model, 1, 0, 1.0, 0)
    with Compilations() as compiled:
        for count in (2, 3, 8, 9, 31):  # in batches of 8, for 8 devices
            _call_all(model, count, count, 1 + count / 100, count % 3)
    assert compiled.names == []
    with Compilations() as compiled:
        model.sample(64)
        model.sample(1000)
    assert compiled.count == 2, compiled.names  # start and step, for a batch of 64


def test_latency_is_that_of_each_call(model):
    found = latency.measure(model, calls=3)
    for name in ("sample", "denoise", "edit.denoise", "edit.variations"):
        assert 0 < found[name]["p50_seconds"] <= found[name]["p95_seconds"]
        assert found[name]["compilations"] == 0
    assert found["edit.inpaint"]["evaluations"] == 2
    assert set(found["compilations_by_count"].values()) == {0}


def test_latency_takes_a_config_or_a_run(tiny, student, monkeypatch, capsys):
    config, workdir = student
    monkeypatch.setattr(latency.distributed, "initialize", lambda _: None)
    monkeypatch.setattr(latency, "measure", lambda made, calls: {"step": made.step})
    for folder, step in ((str(workdir), 8), (None, None)):
        given = argparse.Namespace(config=config, workdir=folder, calls=1)
        latency.main(given)
        assert f'"step": {"null" if step is None else step}' in capsys.readouterr().out


def test_the_speed_of_data_is_that_of_its_parts(tiny, monkeypatch, capsys):
    monkeypatch.setattr(input_lib.distributed, "initialize", lambda _: None)
    for flip, cache in ((False, 0), (True, 1024)):
        config = tiny("digits_cd", **{"data.flip": flip, "data.cache_mib": cache})
        found = input_lib.measure(config, seconds=0.01)
        assert found["images"] == 1797 and found["in_memory"] == (cache > 0)
        assert found["images_per_second"] > 0
        parts = found["cpu_microseconds_per_image"]
        assert set(parts) == {"all", "read", "move"} | ({"flip"} if flip else set())
    input_lib.main(argparse.Namespace(config=config, seconds=0.01))
    assert '"images": 1797' in capsys.readouterr().out
