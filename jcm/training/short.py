"""What a run is too short for: warm-up, curriculum and averages."""

import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jcm.methods import Method
from jcm.training import averages

# A run is too short for an average if the first weights are more than this share of it
# at the end, and for a warm-up or a curriculum that takes more than this part of it.
_FIRST_WEIGHTS, _PART = 0.1, 0.5
# The part of the run for the warm-up, and the ramp of an average, that are advised.
_WARMUP, _RAMP = 0.1, 0.05
# The number of steps at which a curriculum is evaluated.
_POINTS = 256


def warnings(config: ConfigDict, method: Method, section: str = "") -> list[str]:
    """Returns warnings of what a run is too short for, and what to set.

    Args:
      config: the whole config of the run.
      method: the method of the config.
      section: where the fields of `train` and `optim` are set; "teacher_train" for a
        teacher that is trained first, and "" for those sections themselves.
    """
    return [
        *_of_warmup(config, f"config.{section or 'optim'}"),
        *_of_averages(config, section),
        *_of_curriculum(config, method, f"config.{section or 'train'}"),
    ]


def _of_warmup(config: ConfigDict, section: str) -> list[str]:
    warmup, run = config.optim.warmup_kimg, _images(config) / 1000
    if warmup <= _PART * run:
        return []
    rate = config.optim.learning_rate
    reached = "" if warmup <= run else f", up to {rate * run / warmup:.2g} of {rate:g}"
    return [
        f"the learning rate rises for {min(warmup / run, 1):.0%} of the run{reached}:"
        f" config.optim.warmup_kimg={warmup:g} is too long for a run of {run:.3g} kimg."
        f" Set --{section}.warmup_kimg={_WARMUP * run:.2g}"
    ]


def _of_averages(config: ConfigDict, section: str) -> list[str]:
    found = []
    for spec in config.train.averages:
        average = averages.parse(spec)
        share = average.first_share(config.train.num_steps, config.train.batch_size)
        if share <= _FIRST_WEIGHTS:
            continue
        half_life = average.half_life_in_images(config.train.batch_size) / 1e6
        ramped = f"halflife:{half_life:.2g}/{_RAMP:g}"
        remedy = (
            "Set config.train.averages in its config, to "
            if section
            else "Set --config.train.averages="
        )
        found.append(
            f"{share:.0%} of the average {spec} will still be the first weights at the"
            " end, so that its samples show little of the training: the run is too"
            f" short for this average. {remedy}\"('{ramped}',)\""
        )
    return found


def _of_curriculum(config: ConfigDict, method: Method, section: str) -> list[str]:
    """Compares the scalars of a curriculum in this run and in a longer one."""
    steps = config.train.num_steps
    points = jnp.linspace(0, steps - 1, _POINTS).astype(jnp.int32)
    scalars = jax.vmap(method.curriculum)(points)
    later = method.curriculum(jnp.int32(min(10 * steps, 2**31 - 2)))
    found = []
    if method.keeps_target:
        rates = jnp.log(jnp.maximum(scalars.pop("target_ema"), 1e-30))
        share = math.exp(float(jnp.mean(rates)) * steps)
        if share > _FIRST_WEIGHTS:
            found.append(
                f"{share:.0%} of the target will still be the first weights at the end:"
                " the run is too short for its rate. Set a lower EMA rate of the target"
                f" in config.loss, or a larger --{section}.num_steps"
            )
    for name, values in scalars.items():
        first, last, end = (
            float(each) for each in (values[0], values[-1], later[name])
        )
        if abs(last - first) < _PART * abs(end - first):
            found.append(
                f"the run ends in the first stages of its curriculum, with {name} ="
                f" {last:g}, which later becomes {end:g}. Set a larger"
                f" --{section}.num_steps, or a shorter curriculum in config.loss"
            )
    return found


def _images(config: ConfigDict) -> int:
    return config.train.num_steps * config.train.batch_size
