"""Imports go downward, and some packages have one user alone."""

import ast
import pathlib

import pytest

_PACKAGE = pathlib.Path(__file__).parent.parent / "jcm"

# From the bottom up; a module may import from its own layer and those before it.
_LAYERS = [
    {
        "errors",
        "download",
        "images",
        "inputs",
        "pictures",
        "files",
        "memory",
        "precond",
        "schedules",
        "ode",
        "config",
        "cli",
        "cluster",
        "distributed",
        "preemption",
        "checksums",
        "versions",
        "flops",
        "storage",
        "lock",
    },
    {"sharding", "grids", "data", "models"},
    {"denoiser", "pretrained"},
    {"metrics"},
    {"losses", "sampling", "editing", "state", "optim"},
    {
        "step",
        "build",
        "plan",
        "profiling",
        "workdir",
        "checkpoints",
        "writers",
        "progress",
    },
    {"train_log", "editor", "model"},
    {"scoring", "start", "share"},
    {
        "train",
        "evaluate",
        "sample",
        "edit",
        "benchmark",
        "benchmark_scores",
        "benchmark_editing",
        "demo",
        "__init__",
    },
    {"search"},
    {"main"},
]
# Who alone may import a package.
_USERS = {"flax": "models", "gradio": "demo"}
_FILES = sorted(_PACKAGE.rglob("*.py"))


def _layer(name):
    return next(i for i, names in enumerate(_LAYERS) if name in names)


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            if node.module == "jcm":
                yield from (f"jcm.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", _FILES, ids=lambda p: str(p.relative_to(_PACKAGE)))
def test_imports_go_downward(path):
    own = path.relative_to(_PACKAGE).with_suffix("").parts[0]
    own = "main" if path.stem == "__main__" else own  # a program
    for name in _imports(path):
        top, _, rest = name.partition(".")
        assert top not in ("tensorflow", "torch"), name
        if top in _USERS:
            assert own == _USERS[top], f"{path} imports {name}"
        if top == "jcm" and rest:
            imported = rest.split(".")[0]
            assert _layer(imported) <= _layer(own), f"{path} imports {name}"


@pytest.mark.parametrize("path", _FILES, ids=lambda p: str(p.relative_to(_PACKAGE)))
def test_a_file_holds_one_idea(path):
    assert len(path.read_text().splitlines()) <= 400
