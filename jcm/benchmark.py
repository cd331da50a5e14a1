"""Speed and cost of one config on this machine, as JSON.

python -m jcm.benchmark --config=configs/digits_cd.py [--config.FIELD=VALUE ...]
"""

import functools
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict

from jcm import (
    build,
    cli,
    distributed,
    losses,
    memory,
    models,
    optim,
    plan,
    sharding,
)
from jcm import state as state_lib
from jcm.errors import JcmError
from jcm.losses import Frozen
from jcm.sampling import Sampler, Schedule
from jcm.step import compile_step, count_flops, make_train_step

_REPEATS = flags.DEFINE_integer(
    "repeats", 5, "Timed calls of each; the median counts.", lower_bound=1
)
_BATCH = flags.DEFINE_integer(
    "sample_batch", 64, "Images per call of the sampler.", lower_bound=1
)

# Dense bfloat16 matrix products, in FLOP/s, by a part of the device's name.
_PEAK = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}


def measure(config: ConfigDict, *, repeats: int, sample_batch: int) -> dict[str, Any]:
    """Times the training step and the sampler of a config on random images.

    Args:
      config: the whole config.
      repeats: timed calls of each, after one that is not.
      sample_batch: images per call of the sampler.

    Returns:
      Numbers by name; times are medians. FLOPs are those that XLA counts.
    """
    rng = np.random.default_rng(0)
    mesh = sharding.make_mesh(config.mesh.fsdp)
    network = build.network(config, num_classes=10)
    method = losses.create(config, network)
    batch_size = config.train.batch_size
    optimizer = optim.create(config.optim, batch_size)
    params = jax.jit(network.init)(jax.random.key(0))
    new_state = functools.partial(
        state_lib.create,
        optimizer=optimizer,
        keeps_target=method.keeps_target,
        ema_rates=config.train.ema_rates,
    )
    rules = sharding.Rules.of(config.mesh)
    placement = sharding.shard_tree(mesh, jax.eval_shape(new_state, params), rules)
    # Buffers of its own, since the step takes over the state's.
    state = jax.jit(new_state, out_shardings=placement)(params)
    memory.release()
    frozen = Frozen(
        teacher=params if method.needs_teacher else None, constants=method.constants
    )
    frozen = jax.device_put(frozen, sharding.shard_tree(mesh, frozen, rules))
    shape = (batch_size, *[config.data.image_size] * 2, config.data.channels)
    batch = {
        "image": rng.integers(0, 256, shape, np.uint8),
        "label": rng.integers(0, 10, batch_size, np.int32),
        "stop": np.zeros(mesh.size, np.int32),
    }
    batch = jax.device_put(batch, sharding.batch(mesh))

    accumulate = config.train.accumulate
    step = make_train_step(
        method, optimizer, seed_key=jax.random.key(1), accumulate=accumulate
    )
    started = time.perf_counter()
    compiled = compile_step(step, state, frozen, batch, accumulate=accumulate)
    compile_seconds = time.perf_counter() - started
    planned = plan.make(state, frozen, batch, compiled, limit=None)
    logging.info("%s", planned)
    box = [state]

    def train() -> Any:
        box[0], metrics = compiled(box[0], frozen, batch)
        return metrics

    train_seconds = _median_seconds(train, repeats)
    train_memory = _peak_memory_gib()

    sampler = Sampler(method.model, batch_size=sample_batch)
    labels = batch["label"][:1].tolist() * sample_batch
    labels = labels if network.arch.num_classes else None
    sigmas = (80.0, 0.821)

    def sample(schedule: Schedule) -> Callable[[], Any]:
        key = jax.random.key(2)
        return lambda: sampler(params, key, range(sample_batch), schedule, labels)

    one, two = (_median_seconds(sample(Schedule(sigmas[:n])), repeats) for n in (1, 2))
    flops = count_flops(compiled, accumulate)
    flops = None if math.isnan(flops) else flops
    device = jax.devices()[0].device_kind
    peak = next((value for name, value in _PEAK.items() if name in device), None)
    return {
        "device": device,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "dtype": config.model.dtype,
        "parameters": models.count(params),
        "batch_size": batch_size,
        "compile_seconds": compile_seconds,
        "train_step_seconds": train_seconds,
        "train_images_per_second": batch_size / train_seconds,
        "train_planned_memory_gib": planned.total / 2**30,
        "train_peak_memory_gib": train_memory,
        "train_flops_per_image": flops and flops * mesh.size / batch_size,
        "train_flops_per_second_and_device": flops and flops / train_seconds,
        "share_of_bf16_peak": flops and peak and flops / train_seconds / peak,
        "one_step_images_per_second": sample_batch / one,
        "two_step_images_per_second": sample_batch / two,
        "peak_memory_gib": _peak_memory_gib(),
    }


def _median_seconds(function: Callable[[], Any], repeats: int) -> float:
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])  # the first one compiles


def _peak_memory_gib() -> float:
    """Of the device where it tells, else of this process, compilation included."""
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return peak / 2**30 if peak else memory.peak_gib()


def main(argv: Sequence[str]) -> None:
    """Prints the numbers of the config that the flags name."""
    cli.refuse_arguments(argv)
    config = cli.config()
    if config is None:
        raise JcmError("name a config, such as --config=configs/digits_cd.py")
    # What it costs the first time.
    jax.config.update("jax_enable_compilation_cache", False)
    distributed.initialize(config)
    found = measure(config, repeats=_REPEATS.value, sample_batch=_BATCH.value)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    cli.run(main)
