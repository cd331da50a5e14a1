"""The time of one image, and what is compiled for it: `jcm benchmark latency`."""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging

from jcm import methods, networks
from jcm.commands import cli
from jcm.commands.benchmark.measuring import print_json, watched
from jcm.model import build
from jcm.model.loading import load
from jcm.model.model import Model
from jcm.runtime import distributed
from jcm.runtime.compilations import Compilations

# The number of classes of a network with random weights, as in ImageNet.
_CLASSES = 1000
_COUNTS = (2, 3, 8, 13)
# A call, as a function of its number: each has another seed, noise level and label.
Call = Callable[[int], Any]


def measure(model: Model, *, calls: int) -> dict[str, Any]:
    """Times calls for one image, each with another seed, noise level and label.

    Args:
      model: a model.
      calls: number of timed calls of each kind, after one that compiles.

    Returns:
      Numbers by name and kind of call. `network` is the network alone: compiled, for
      one image on one device, with its arguments there, once for each evaluation of the
      call. Its time is split in that until the call returns, `dispatch`, and the rest,
      `compute`. `overhead` is what a call takes in the median beyond its evaluations of
      the network: checks, Python, dispatch and copies. `compilations` counts the
      programs that were compiled while calls were timed, and by `counts` those for
      other numbers of images, which are sampled after that.
    """
    x = np.random.default_rng(0).uniform(-1, 1, (1, *model.denoiser.image_shape))
    x = x.astype(np.float32)
    network = _network(model, x, calls)
    found = {
        "device": jax.devices()[0].device_kind,
        "devices": len(jax.local_devices()),
        "jax": jax.__version__,
        "parameters": networks.count(model.params),
        "calls": calls,
        "network": network,
    }
    for name, (call, evaluations) in _ways(model, x).items():
        logging.info("timing model.%s", name)
        with Compilations() as first:
            jax.block_until_ready(call(0))
        with Compilations() as later:
            seconds, cpu = _timed(call, calls)
        p50, p95 = np.percentile(seconds, [50, 95])
        found[name] = {
            "evaluations": evaluations,
            "p50_seconds": p50,
            "p95_seconds": p95,
            "overhead_seconds": p50 - evaluations * network["p50_seconds"],
            "cpu_seconds": cpu,
            "compilations_of_the_first_call": first.count,
            "compilations": later.count,
        }
    found["compilations_by_count"] = {}
    for count in _COUNTS:
        with Compilations() as compiled:
            model.sample(count, progress=False)
        found["compilations_by_count"][str(count)] = compiled.count
    return found


def _ways(model: Model, x: np.ndarray) -> dict[str, tuple[Call, int]]:
    """Returns the calls to time, and the number of evaluations of the network in each.

    Args:
      model: a model.
      x: one image.
    """
    classes = model.denoiser.num_classes
    schedule = build.schedule(model.config, model.denoiser)

    def of(number: int) -> dict[str, Any]:
        return {"labels": number % classes} if classes else {}

    def sigma(number: int) -> float:
        return 0.5 + number / 1000

    ways: dict[str, tuple[Call, int]] = {
        "sample": (
            lambda i: model.sample(1, seed=i, progress=False, **of(i)),
            schedule.nfe,
        ),
        "denoise": (lambda i: model.denoise(x, sigma(i), **of(i)), 1),
    }
    if model.kind == "consistency":
        mask = np.zeros(x.shape[1:3], bool)
        mask[: len(mask) // 2] = True
        edit = model.edit
        ways |= {
            "edit.denoise": (lambda i: edit.denoise(x, sigma(i), **of(i)), 1),
            "edit.variations": (
                lambda i: edit.variations(x, sigma(i), seed=i, progress=False, **of(i)),
                1,
            ),
            "edit.inpaint": (
                lambda i: edit.inpaint(
                    x, mask, steps=2, seed=i, progress=False, **of(i)
                ),
                2,
            ),
        }
    return ways


def _timed(call: Call, calls: int) -> tuple[list[float], float]:
    """Returns the seconds of each call, and the mean CPU seconds of a call."""
    seconds, cpu = [], time.process_time()
    for number in range(1, calls + 1):
        started = time.perf_counter()
        jax.block_until_ready(call(number))
        seconds.append(time.perf_counter() - started)
    return seconds, (time.process_time() - cpu) / calls


def _network(model: Model, x: np.ndarray, calls: int) -> dict[str, float]:
    """Times the network alone, for one image on one device."""
    device = jax.local_devices()[0]
    labels = np.zeros(1, np.int32) if model.denoiser.num_classes else None
    given = jax.device_put((model.params, x, np.ones(1, np.float32), labels), device)
    denoise = jax.jit(model.denoiser)
    jax.block_until_ready(denoise(*given))
    returned, ready = [], []
    for _ in range(calls):
        started = time.perf_counter()
        made = denoise(*given)
        returned.append(time.perf_counter() - started)
        jax.block_until_ready(made)
        ready.append(time.perf_counter() - started)
    p50, p95 = np.percentile(ready, [50, 95])
    dispatch = float(np.median(returned))
    return {
        "p50_seconds": p50,
        "p95_seconds": p95,
        "dispatch_seconds": dispatch,
        "compute_seconds": p50 - dispatch,
    }


def _random(config: Any) -> Model:
    """Returns a model of random weights."""
    network = build.network(config, _CLASSES)
    params = jax.jit(network.init)(jax.random.key(0))
    denoiser = methods.denoiser(config, network)
    return Model(denoiser, params, config, list(map(str, range(_CLASSES))))


def main(arguments: argparse.Namespace) -> None:
    """Prints the latency of a model as JSON.

    Args:
      arguments: the flags `flags.LATENCY`.

    Raises:
      JcmError: if the model cannot be loaded.
    """
    config = cli.required_config(arguments)
    distributed.initialize(config)
    wanted = config.sample
    source = wanted.model or arguments.workdir
    if source:
        model = load(
            source, ema=wanted.ema, step=wanted.step, batch_size=wanted.batch_size
        )
    else:
        model = _random(config)
    with watched("the latency") as others:
        found = measure(model, calls=arguments.calls)
    print_json(found | others)
