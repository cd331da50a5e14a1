"""Settings of JAX for all tests, and the trained models that they share.

The settings must be made before anything imports JAX: eight simulated devices, and
checks of the types and shapes in signatures.
"""

import atexit
import gc
import importlib.metadata
import os
import shutil
import signal
import sys
import tempfile
import typing

import beartype
import jaxtyping
import ml_collections
import pytest
import threadpoolctl

# Tracing creates many objects that live long. The garbage collector would scan them
# again and again, which takes a tenth of the time.
gc.set_threshold(100_000, 20, 100)

# The default may be overridden, so that the tests can run on an accelerator.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Networks this small spend most of their time in the compiler. Without optimisations it
# is faster, and numbers change by rounding only.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# A module of LLVM is compiled in one part, as several parts have work in common.
_flags = ["--xla_cpu_parallel_codegen_split_count=1"]
# Versions of JAX that still have the choice compile twice as fast without these.
if tuple(map(int, importlib.metadata.version("jax").split(".")[:2])) < (0, 11):
    _flags.append("--xla_cpu_use_fusion_emitters=false")
if "codegen_split" not in os.environ.get("XLA_FLAGS", ""):  # xdist's workers inherit.
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_flags])

# As for the programs, and so that those of the tests need not start twice.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")

# All processes of a test run share what they compile.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # A worker of xdist inherits it.
    _cache = tempfile.TemporaryDirectory(prefix="jcm_xla_")
    atexit.register(_cache.cleanup)  # or Python warns
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
# The cache of the user is neither read nor written.
if "JCM_CACHE" not in os.environ:
    _own_cache = tempfile.TemporaryDirectory(prefix="jcm_cache_")
    atexit.register(_own_cache.cleanup)
    os.environ["JCM_CACHE"] = _own_cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# Several threads make products of small matrices 30 times slower, because they wait
# for each other. NumPy may be loaded already, and then it ignores the variables.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
threadpoolctl.threadpool_limits(1)

check_types = beartype.beartype(
    conf=beartype.BeartypeConf(
        # An int is accepted as a float.
        is_pep484_tower=True,
        # jaxtyping decorates each method separately, where beartype does not know Self.
        hint_overrides=beartype.FrozenDict({typing.Self: typing.Any}),
    )
)
# Every type and shape in a signature of jcm is checked when the function is called.
jaxtyping.install_import_hook("jcm", "conftest.check_types")


_DEPENDENCIES = (
    "flax.nnx",
    "grain",
    "optax",
    "orbax.checkpoint",
    "scipy.special",
    "tensorboardX",
    "tensorflow_datasets",
)

# Files that take longest begin first, so that no process is left with one at the end.
_LONG = (
    "test_processes",
    "test_notebooks",
    "test_train",
    "test_evaluate",
    "test_step",
    "test_lpips",
    "test_storage",
    "test_start",
    "test_demo",
    "test_adm",
    "test_preemption",
    "test_disk",
)

# The signals that a command handles.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session):
    """Imports the dependencies of jcm, unless other processes run the tests.

    While a module of jcm is imported, the hook above makes Python ignore the compiled
    files of all modules, so the dependencies come first.
    """
    if getattr(session.config.option, "dist", "no") == "no":
        for name in _DEPENDENCIES:
            importlib.import_module(name)


def pytest_collection_modifyitems(items):
    """Sorts the files by how long they take."""
    ranks = {name: rank for rank, name in enumerate(_LONG)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(_LONG)))


@pytest.fixture(autouse=True, scope="module")
def _freeze():
    """Hides what modules and the caches of JAX hold from the garbage collector.

    Each collection would take half a second, and `jcm` collects after it has compiled
    a step.
    """
    gc.collect()
    gc.freeze()


class Done(typing.NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(monkeypatch, capfd):
    """A function that runs the command line in this process, which saves its start."""
    from absl import logging

    from jcm import main
    from jcm.runtime import preemption

    # It would end the process that runs the tests.
    monkeypatch.setattr(preemption._Interrupts, "start_once", lambda: None)
    monkeypatch.setattr(preemption._Stopped, "resumes", True)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    verbosity = logging.get_verbosity()
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["jcm", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            main.command_line()
        return Done(exit_info.value.code or 0, *capfd.readouterr())

    yield call
    logging.set_verbosity(verbosity)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def optimized():
    """Compiles with optimisations, for tests that compute more than they compile."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """A function that makes a folder once for all processes of the test run.

    It takes a name and a function that fills the folder, and returns the folder. The
    other processes wait until the folder is complete.
    """
    from jcm.runtime import locks

    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def get(name, make):
        folder, complete = base / name, base / f"{name}.complete"
        with (base / f"{name}.lock").open("a") as file:
            locks.lock(file, wait=True)
            if not complete.exists():
                shutil.rmtree(folder, ignore_errors=True)  # A process has failed.
                folder.mkdir()
                make(folder)
                complete.touch()
        return folder

    return get


@pytest.fixture(scope="session")
def data_dir(once):
    """A folder with the prepared digits; tests prepare other data sets in it too."""
    from jcm import data

    return once("data", lambda folder: data.load(_digits_in(folder)))


@pytest.fixture(scope="session")
def tiny(data_dir):
    """A function from the name of a shipped config to its smallest run."""
    from jcm import config as config_lib

    def get(name, **changes):
        config = config_lib.load(f"configs/{name}.py:smoke")
        config.data.dir = str(data_dir)
        config.eval.scores = ()
        config.model.ch_mult = (1,)
        config.model.attn_resolutions = ()
        config.sample.steps = 3
        config.update_from_flattened_dict(changes)
        return config

    return get


@pytest.fixture(scope="session")
def teacher(tiny, once):
    """The workdir of a diffusion model of the digits, which tests must not change."""
    from jcm.commands.train import train

    return once("teacher", lambda folder: train(tiny("digits_edm"), folder))


@pytest.fixture(scope="session")
def student(tiny, teacher, once):
    """A model distilled from `teacher`: config and workdir, which must not change."""
    from jcm.commands.train import train

    config = tiny("digits_cd", **{"teachers.diffusion": str(teacher)})
    return config, once("student", lambda folder: train(config, folder))


@pytest.fixture(scope="module")
def classifier(student):
    """The classifier of the digits, fitted once for all tests of a file."""
    from jcm import data
    from jcm.metrics.classifier import Classifier

    score = Classifier(data.load(student[0].data), 80)
    score.prepare()
    return score


@pytest.fixture
def scored(student, classifier, tmp_path, monkeypatch):
    """A config that scores 80 samples with two seeds, and a copy of the workdir."""
    from jcm.metrics import scores

    monkeypatch.setattr(classifier, "prepare", lambda: None)
    monkeypatch.setattr(scores, "Classifier", lambda *_: classifier)
    config, workdir = student
    shutil.copytree(workdir, tmp_path / "run")
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.eval.scores = ("classifier",)
        config.eval.num_images = 80
        config.eval.seeds = (0, 5)
        config.sample.num_images = 9
    return config, tmp_path / "run"


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
    """The settings of the digits, to be prepared in an empty folder."""
    return _digits_in(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def digit_set(data_dir):
    """The digits."""
    from jcm import data

    return data.load(_digits_in(data_dir))
