"""Tests that a command refuses fields of config.sample that it does not use."""

import pytest

from jcm import config as config_lib
from jcm.commands import cli, unused
from jcm.runtime.errors import JcmError


@pytest.mark.parametrize(
    ("command", "kind", "teacher", "refused"),
    [
        ("sample", "consistency", "x", {"steps", "solver"}),
        ("sample", "diffusion", "", {"sigmas"}),
        ("edit", "consistency", "x", {"steps", "solver", "sigmas"}),
        ("search", "consistency", "x", {"steps", "solver", "sigmas"}),
        ("evaluate", "consistency", "x", set()),  # the teacher uses the others
        ("evaluate", "consistency", "", {"steps", "solver"}),
        ("evaluate", "diffusion", "", {"sigmas"}),
        ("train", "consistency", "x", set()),
        ("train", "consistency", "", {"steps", "solver"}),
        ("train", "diffusion", "", {"sigmas"}),
    ],
)
def test_fields_without_use_are_refused(command, kind, teacher, refused):
    config = config_lib.base("cd")
    config.teachers.diffusion = teacher
    found = set()
    for name in config_lib.fields(config):
        try:
            unused.check(command, kind, config, (name,))
        except JcmError as error:
            assert f"jcm {command} does not use config.{name} for a {kind} " in str(
                error
            )
            assert ": set " in str(error)
            found.add(name.removeprefix("sample."))
    assert found == refused


def test_the_command_line_knows_which_fields_it_set():
    words = ["--config.sample.steps=5", "--config.seed", "3", "--noconfig.data.flip"]
    config = "--config=configs/digits_cd.py:smoke"
    parsed = cli.parse(["jcm", "sample", config, *words])
    assert parsed.given == ("sample.steps", "seed", "data.flip")
    assert cli.parse(["jcm", "sample", config]).given == ()


def test_class_conditional_models_are_trained_from_the_command_line():
    config = config_lib.base("ct")
    config.model.class_conditional = True
    unused.check_training(config, ("sample.labels",))
    with pytest.raises(JcmError, match="does not use config.sample.steps"):
        unused.check_training(config, ("sample.steps",))
