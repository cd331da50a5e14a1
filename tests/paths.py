"""The folders of the repository that tests use."""

import pathlib

ROOT = pathlib.Path(__file__).parents[1]
DATA = ROOT / "tests" / "data"
