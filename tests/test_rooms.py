"""Each room of the package imports only from the rooms that its line names."""

import ast

import pytest
from paths import ROOT

_PACKAGE = ROOT / "jcm"
# From the bottom up. "runtime" is the whole room, "runtime.errors" one module of it.
_MAY_IMPORT = {
    "runtime": "",
    "data": "runtime",
    "networks": "runtime.errors",
    "diffusion": "runtime.errors runtime.arrays networks",
    "pretrained": "runtime networks",
    "metrics": "runtime data networks pretrained",
    "methods": "runtime.errors runtime.arrays runtime.fields networks diffusion"
    " metrics",
    "config": "runtime.errors runtime.fields runtime.paths runtime.similar methods",
    "run": "runtime data networks config",
    "model": "runtime data networks run diffusion pretrained metrics methods config",
    "training": "runtime data networks run diffusion pretrained metrics methods model"
    " config",
    "commands": "runtime data networks run diffusion pretrained metrics methods model"
    " training config",
    "main": "runtime run config commands",
    "__init__": "runtime data.images networks run.grids diffusion metrics"
    " methods model config commands.api",
}
# The packages that one room alone may import.
_ONE_USER = {"flax": "networks", "gradio": "commands"}
_FILES = sorted(_PACKAGE.rglob("*.py"))


def _room(path):
    return path.relative_to(_PACKAGE).with_suffix("").parts[0]


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", _FILES, ids=lambda p: str(p.relative_to(_PACKAGE)))
def test_a_file_imports_only_what_its_room_may(path):
    room = _room(path)
    allowed = [f"jcm.{name}." for name in (room, *_MAY_IMPORT[room].split())]
    for name in _imports(path):
        top = name.split(".")[0]
        assert top not in ("tensorflow", "torch"), name
        assert room == _ONE_USER.get(top, room), f"{path} imports {name}"
        if top == "jcm":
            assert f"{name}.".startswith(tuple(allowed)), f"{path} imports {name}"


def test_rooms_name_only_rooms_below_them():
    above = list(_MAY_IMPORT)
    for room, line in _MAY_IMPORT.items():
        for name in line.split():
            assert above.index(name.split(".")[0]) < above.index(room), (room, name)


def test_only_the_entry_points_lie_flat():
    flat = {path.name for path in _PACKAGE.iterdir() if path.suffix == ".py"}
    assert flat == {"__init__.py", "main.py"}
