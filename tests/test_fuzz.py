"""A short fuzz of everything that reads files; `campaigns/fuzz.py` is a long one."""

import random

import pytest
import readers

# How many files of each kind are tried. Those that take longest to read have fewer.
_SLOW = ("checkpoint", "prepared data")
_FILES = 12


@pytest.fixture(scope="module")
def seeds(tmp_path_factory, teacher, data_dir):
    folder = tmp_path_factory.mktemp("seeds")
    readers.seeds(folder, readers.Sources(teacher, data_dir))
    return folder


@pytest.mark.parametrize("name", readers.READERS)
def test_a_damaged_file_is_refused_or_read_within_the_budget(name, seeds, tmp_path):
    readers.mutations.copy(seeds / name, tmp_path / "good")
    assert readers.attempt(name, tmp_path / "good").kind == "accepted"
    for number in range(_FILES // 4 if name in _SLOW else _FILES):
        rng = random.Random(f"{name} {number}")
        how = readers.changed(name, seeds, tmp_path / "file", rng)
        outcome = readers.attempt(name, tmp_path / "file")
        assert outcome.kind in ("accepted", "refused"), (number, how, outcome)
