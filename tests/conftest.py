"""Sets JAX up before any test imports it: 8 simulated devices, checked shapes."""

import importlib.metadata
import os
import tempfile
import typing

import beartype
import jaxtyping
import ml_collections
import pytest

# Not forced, so that the tests can be run on an accelerator as well.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Compiling takes most of the time of tests this small; numbers stay the same up to
# rounding. A test that trains for long can switch it off.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# The same: half of the time of compiling where there is a choice.
if tuple(map(int, importlib.metadata.version("jax").split(".")[:2])) < (0, 11):
    _flags = os.environ.get("XLA_FLAGS", "")
    if "fusion_emitters" not in _flags:  # there: a worker of xdist
        os.environ["XLA_FLAGS"] = f"{_flags} --xla_cpu_use_fusion_emitters=false"

# Whole runs compile the same programs again and again.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # set: a worker of xdist
    _cache = tempfile.TemporaryDirectory(prefix="jcm_xla_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

check_types = beartype.beartype(
    conf=beartype.BeartypeConf(
        # An int will do where a float is asked for.
        is_pep484_tower=True,
        # jaxtyping decorates methods one by one, where beartype cannot know Self.
        hint_overrides=beartype.FrozenDict({typing.Self: typing.Any}),
    )
)
# From here on each annotated shape and type in jcm is checked when it is used.
jaxtyping.install_import_hook("jcm", "conftest.check_types")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where the tests prepare their data sets, once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def tiny(data_dir):
    """A function from the name of a shipped config to its smallest run."""
    from jcm import config as config_lib

    def get(name, **changes):
        config = config_lib.load(f"configs/{name}.py:smoke")
        with config.unlocked():
            config.data.dir = str(data_dir)
            config.eval.scores = ()
            config.model.attn_resolutions = ()
            config.sample.steps = 3
            config.update_from_flattened_dict(changes)
        return config

    return get


@pytest.fixture(scope="session")
def teacher(tiny, tmp_path_factory):
    """The workdir of a trained diffusion model on the digits."""
    from jcm.commands.train import train

    workdir = tmp_path_factory.mktemp("teacher") / "run"
    train(tiny("digits_edm"), workdir)
    return workdir


@pytest.fixture(scope="session")
def student(tiny, teacher, tmp_path_factory):
    """The workdir of a model distilled from `teacher`, and its config."""
    from jcm.commands.train import train

    workdir = tmp_path_factory.mktemp("student") / "run"
    config = tiny("digits_cd", teacher=str(teacher))
    train(config, workdir)
    return config, workdir


def _digits_in(folder):
    return ml_collections.ConfigDict(
        {
            "name": "digits",
            "path": "",
            "dir": str(folder),
            "image_size": 8,
            "channels": 1,
            "skip_broken": False,
            "cache_mib": 1024,
        }
    )


@pytest.fixture
def data_config(tmp_path_factory):
    """Settings of the digits, prepared in a folder of their own."""
    return _digits_in(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def digit_set(tmp_path_factory):
    """The digits, prepared once for a file of tests."""
    from jcm import data

    return data.load(_digits_in(tmp_path_factory.mktemp("digits")))
