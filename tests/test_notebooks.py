"""Tests of the notebooks: how they are stored, and a run from top to bottom."""

import configparser
import re

import nbclient
import nbformat
import pytest
from paths import ROOT

_PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def _address():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser["metadata"]["url"].removeprefix("https://github.com/")


def test_the_readme_names_all_notebooks():
    readme = (ROOT / "README.md").read_text()
    assert len(_PATHS) == 3
    for path in _PATHS:
        assert f"github/{_address()}/blob/main/notebooks/{path.name}" in readme


@pytest.mark.parametrize("path", _PATHS, ids=lambda path: path.stem)
def test_a_notebook_has_no_outputs_and_the_right_addresses(path):
    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    text = "\n".join(cell.source for cell in notebook.cells)
    badge = "https://colab.research.google.com/github/"
    assert f"{badge}{_address()}/blob/main/notebooks/{path.name}" in text
    places = re.findall(r"github\.com/([\w-]+/\w+)", text)
    assert places and set(places) == {_address()}


@pytest.mark.parametrize("path", _PATHS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("JCM_SMOKE", "1")
    monkeypatch.setenv("JCM_CACHE", str(tmp_path / "cache"))
    if path.stem != "sample_and_edit":  # This one finds in the cache what it compiles.
        # Users have the default number of devices.
        monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    notebook = nbformat.read(path, 4)
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=250, resources=place).execute()
    outputs = [each for cell in notebook.cells for each in cell.get("outputs", [])]
    pictures = [each for each in outputs if "image/png" in each.get("data", {})]
    assert len(pictures) >= 4
    told = "".join(each.get("text", "") for each in outputs)
    assert "Error" not in told and "jcm: " not in told
