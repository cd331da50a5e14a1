"""The speed of the input pipeline: `jcm benchmark input`.

What is measured is what a training run does for each batch: it reads the records,
mirrors images, and moves the batch to the devices.
"""

import argparse
import contextlib
import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from jcm import data
from jcm.commands import cli
from jcm.commands.benchmark.measuring import print_json, timed, watched
from jcm.data import pipeline
from jcm.runtime import distributed, sharding


def measure(config: ConfigDict, *, seconds: float) -> dict[str, Any]:
    """Times how fast batches of a config's data reach the devices.

    Args:
      config: the whole config.
      seconds: how long to measure the pipeline, and each of its parts.

    Returns:
      Numbers by name. CPU seconds are those of all threads of this process. `open` is
      the time to open the data set, and to prepare it if that has not been done, and
      `read_all` the time to read all of it into memory if it is kept there. The parts
      of the pipeline are measured one by one.
    """
    dataset, opening = timed(lambda: data.load(config.data, config.data.split))
    logging.info("the data: %s", dataset.summary())
    _, reading = timed(lambda: dataset.take(np.arange(0)))
    count, flip = config.train.batch_size, config.data.flip
    place = sharding.batch(sharding.make_mesh())
    move = functools.partial(jax.make_array_from_process_local_data, place)
    batches = data.batches(
        dataset,
        count,
        seed=config.seed,
        flip=flip,
        rows=sharding.rows(place, count),
        workers=config.data.workers,
    )
    with contextlib.closing(batches):
        whole = _rates(
            lambda _: jax.block_until_ready(jax.tree.map(move, next(batches))),
            count,
            seconds,
        )
    order = np.random.default_rng(0).permutation(len(dataset))
    batch = dataset.take(np.resize(order, count))
    chosen = np.arange(count) % 2 == 0

    def read(number: int) -> None:
        places = number * count + np.arange(count)
        dataset.take(order[places % len(order)])

    parts: dict[str, Callable[[int], Any]] = {
        "read": read,
        "flip": lambda _: pipeline.mirror(batch["image"], chosen),
        "move": lambda _: jax.block_until_ready(jax.tree.map(move, batch)),
    }
    if not flip:
        del parts["flip"]
    return {
        "device": jax.devices()[0].device_kind,
        "devices": len(jax.devices()),
        "data": config.data.name,
        "images": len(dataset),
        "image_shape": [dataset.image_size, dataset.image_size, dataset.channels],
        "in_memory": dataset.in_memory,
        "batch_size": count,
        "workers": config.data.workers,
        "open_seconds": opening,
        "read_all_seconds": reading,
        "images_per_second": whole["images_per_second"],
        "images_per_cpu_second": whole["images_per_cpu_second"],
        "cpu_microseconds_per_image": {
            "all": 1e6 / whole["images_per_cpu_second"],
            **{
                name: 1e6 / _rates(part, count, seconds)["images_per_cpu_second"]
                for name, part in parts.items()
            },
        },
    }


def _rates(
    function: Callable[[int], Any], count: int, seconds: float
) -> dict[str, float]:
    """Calls a function of the number of a batch for a while, after a first call.

    Returns:
      Images per second of time and of CPU time.
    """
    function(0)
    started, cpu = time.perf_counter(), time.process_time()
    for number in itertools.count(1):
        function(number)
        taken = time.perf_counter() - started
        if taken >= seconds:
            images = number * count
            busy = time.process_time() - cpu
            return {
                "images_per_second": images / taken,
                "images_per_cpu_second": images / busy,
            }
    raise AssertionError


def main(arguments: argparse.Namespace) -> None:
    """Prints the speed of the input pipeline as JSON.

    Args:
      arguments: the flags `flags.INPUT`.

    Raises:
      JcmError: if the data cannot be opened.
    """
    config = cli.required_config(arguments)
    distributed.initialize(config)
    with watched("the input") as others:
        found = measure(config, seconds=arguments.seconds)
    print_json(found | others)
