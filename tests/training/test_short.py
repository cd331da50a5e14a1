"""Tests of the warnings on runs that are too short for their settings."""

import jax.numpy as jnp
import pytest

from jcm import config as config_lib
from jcm.diffusion.schedules import AdaptiveScales, FixedScales
from jcm.methods import Plain
from jcm.training import averages, short


def _config(**changes):
    """A run of 600 steps of 32 images, 19.2 kimg, without a warm-up."""
    config = config_lib.base("edm")
    config.train.num_steps, config.train.batch_size = 600, 32
    config.train.averages = ("halflife:0.5/0.05", "power:0.05")
    config.update_from_flattened_dict(changes)
    return config


class _Method(Plain):
    """A method with a curriculum alone."""

    denoiser, loss = object(), len

    def __init__(self, curriculum, keeps_target=False):
        self.curriculum, self.keeps_target = curriculum, keeps_target


def _target(scales):
    """A method with a target."""
    names = "num_scales", "target_ema"
    return _Method(lambda step: dict(zip(names, scales(step), strict=True)), True)


@pytest.mark.parametrize(
    ("changes", "section", "messages"),
    [
        ({}, "", []),
        ({"optim.warmup_kimg": 2.0}, "", []),
        (
            {"optim.warmup_kimg": 50.0},
            "",
            [
                "the learning rate rises for 100% of the run, up to 0.00015 of 0.0004:"
                " config.optim.warmup_kimg=50 is too long for a run of 19.2 kimg. Set"
                " --config.optim.warmup_kimg=1.9"
            ],
        ),
        (
            {"optim.warmup_kimg": 12.0},
            "teacher_train",
            [
                "the learning rate rises for 62% of the run:"
                " config.optim.warmup_kimg=12 is too long for a run of 19.2 kimg. Set"
                " --config.teacher_train.warmup_kimg=1.9"
            ],
        ),
        (
            {"train.averages": ("0.999", "0.99", "halflife:0.01")},
            "",
            [
                "55% of the average 0.999 will still be the first weights at the end,"
                " so that its samples show little of the training: the run is too short"
                " for this average. Set"
                " --config.train.averages=\"('halflife:0.022/0.05',)\"",
                "26% of the average halflife:0.01 will still be the first weights at"
                " the end, so that its samples show little of the training: the run is"
                " too short for this average. Set"
                " --config.train.averages=\"('halflife:0.01/0.05',)\"",
            ],
        ),
    ],
)
def test_a_short_run_says_what_to_set(changes, section, messages):
    found = short.warnings(_config(**changes), _Method(lambda step: {}), section)
    assert found == messages


def test_a_target_needs_a_run_that_is_longer_than_its_memory():
    assert short.warnings(_config(), _target(FixedScales(18, 0.95))) == []
    (found,) = short.warnings(_config(), _target(FixedScales(18, 0.999)))
    assert found.startswith("55% of the target will still be the first weights")
    # N(k) and mu(k) fit the length of the run.
    assert short.warnings(_config(), _target(AdaptiveScales(2, 40, 0.9, 600))) == []


def test_a_run_should_not_end_in_the_first_stages_of_a_curriculum():
    stages = _Method(lambda step: {"num_scales": 10 * 2 ** jnp.minimum(step // 500, 3)})
    (found,) = short.warnings(_config(), stages)
    assert found == (
        "the run ends in the first stages of its curriculum, with num_scales = 20,"
        " which later becomes 80. Set a larger --config.train.num_steps, or a shorter"
        " curriculum in config.loss"
    )
    assert short.warnings(_config(**{"train.num_steps": 2000}), stages) == []


@pytest.mark.parametrize(
    "spec", ["0.99", "halflife:0.002", "halflife:0.002/0.05", "power:0.1", "0.0"]
)
@pytest.mark.parametrize("steps", [3, 300])
def test_the_share_of_the_first_weights(spec, steps):
    average = averages.parse(spec)
    state, new = {"w": jnp.float32(1.0)}, {"w": jnp.float32(0.0)}
    for step in range(1, steps + 1):
        state = average.update(state, new, jnp.int32(step), 32)
    found = average.first_share(steps, 32)
    # With a ramp it is an estimate of what is nearly nothing.
    assert found == pytest.approx(float(state["w"]), rel=1e-3, abs=2e-3)


@pytest.mark.parametrize("path", config_lib.shipped(), ids=lambda path: path.stem)
def test_the_shipped_configs_are_long_enough(path):
    config = config_lib.load(str(path))
    assert short._of_warmup(config, "") == short._of_averages(config, "") == []
