"""Speed and cost of one config, as JSON: here, or on TPUs that are not here.

python -m jcm.commands.benchmark.speed --config=configs/digits_cd.py
    [--config.FIELD=VALUE ...]
python -m jcm.commands.benchmark.speed --config=configs/imagenet64_cd.py
    --topology=v5e:4x4
"""

import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from jax.experimental import topologies
from ml_collections import ConfigDict

from jcm import networks
from jcm.commands import cli
from jcm.diffusion.sampler import Sampler
from jcm.diffusion.schedule import Schedule
from jcm.methods import Frozen
from jcm.runtime import distributed, files, memory
from jcm.runtime import flops as flops_lib
from jcm.runtime.errors import JcmError, one_line
from jcm.training import memory_plan
from jcm.training import program as program_lib
from jcm.training.program import Program
from jcm.training.step import compile_step

_REPEATS = flags.DEFINE_integer(
    "repeats", 5, "Timed calls of each; the median counts.", lower_bound=1
)
_BATCH = flags.DEFINE_integer(
    "sample_batch", 64, "Images per call of the sampler.", lower_bound=1
)
_TOPOLOGY = flags.DEFINE_string(
    "topology",
    "",
    "Only compile the training step, for a slice of TPUs such as v5e:4x4, which need"
    " not be here: says what fits, and what it costs. Needs libtpu (pip install"
    " libtpu).",
)
_SLICES = flags.DEFINE_integer(
    "slices", 1, "With --topology, how many such slices.", lower_bound=1
)

_PROFILE = flags.DEFINE_string(
    "profile",
    "",
    "Folder for a trace of three training steps, for TensorBoard or Perfetto, and for"
    " the compiled step as text.",
)

# Dense bfloat16 matrix products, in FLOP/s, by a part of the device's name.
_PEAK = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}
_CLASSES = 1000


def _about(
    config: ConfigDict, devices: Sequence[jax.Device], program: Program
) -> dict[str, Any]:
    """What is known without running anything."""
    without = config.copy_and_resolve_references()
    without.model.remat = ()
    needed = (
        program
        if not config.model.remat
        else program_lib.create(without, _CLASSES, devices)
    )
    needed, done = (flops_lib.count(each.traced.jaxpr) for each in (needed, program))
    return {
        "device": devices[0].device_kind,
        "devices": len(devices),
        "jax": jax.__version__,
        "dtype": config.model.dtype,
        "parameters": networks.count(program.network.shapes),
        "batch_size": config.train.batch_size,
        "train_flops_per_image": needed / config.train.batch_size,
        "train_flops_per_image_with_remat": done / config.train.batch_size,
    }


def _peak(device: jax.Device) -> float | None:
    """Of bfloat16 matrix products, in FLOP/s."""
    kind = device.device_kind
    return next((value for name, value in _PEAK.items() if name in kind), None)


def measure(
    config: ConfigDict, *, repeats: int, sample_batch: int, profile: str = ""
) -> dict[str, Any]:
    """Times the training step and the sampler of a config on random images.

    Args:
      config: the whole config.
      repeats: timed calls of each, after one that is not.
      sample_batch: images per call of the sampler.
      profile: folder for a trace of three more steps, by process 0; "" makes none.

    Returns:
      Numbers by name; times are medians. FLOPs are those of `flops.count`; the share of
      the peak does not count what remat computes again.
    """
    writes = profile and jax.process_index() == 0
    if writes:
        pathlib.Path(profile).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    devices = jax.devices()
    program = program_lib.create(config, _CLASSES, devices)
    about = _about(config, devices, program)
    started = time.perf_counter()
    compiled = compile_step(program.traced)
    compile_seconds = time.perf_counter() - started
    planned = memory_plan.make(
        program.state, program.frozen, program.batch, compiled, limit=None
    )
    logging.info("%s", planned)

    def placement(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.sharding, tree)

    params = jax.jit(program.network.init)(jax.random.key(0))
    # Buffers of its own, since the step takes over the state's.
    new_state = jax.jit(program.new_state, out_shardings=placement(program.state))
    box = [new_state(params)]
    memory.release()
    method, classes = program.method, program.network.arch.num_classes
    frozen = Frozen(
        teacher=params if method.needs_teacher else None, constants=method.constants
    )
    frozen = jax.device_put(frozen, placement(program.frozen))
    images, labels, stop = (
        program.batch[name].shape for name in ("image", "label", "stop")
    )
    batch = {
        "image": rng.integers(0, 256, images, np.uint8),
        "label": rng.integers(0, 10, labels, np.int32),
        "stop": np.zeros(stop, np.int32),
    }
    batch = jax.device_put(batch, placement(program.batch))

    def train() -> Any:
        box[0], metrics = compiled(box[0], frozen, batch)
        return metrics

    train_seconds = _median_seconds(train, repeats)
    train_memory = _peak_memory_gib()
    logging.info("a training step takes %.3g s", train_seconds)
    if writes:
        files.write_text(pathlib.Path(profile, "step.hlo"), compiled.as_text())
        jax.profiler.start_trace(profile)
    for _ in range(3 if profile else 0):
        jax.block_until_ready(train())
    if writes:
        jax.profiler.stop_trace()

    sampler = Sampler(method.denoiser, batch_size=sample_batch)
    labels = [1] * sample_batch if classes else None
    sigmas = (80.0, 0.821)

    def sample(schedule: Schedule) -> Callable[[], Any]:
        key = jax.random.key(2)
        return lambda: sampler(params, key, range(sample_batch), schedule, labels)

    one, two = (_median_seconds(sample(Schedule(sigmas[:n])), repeats) for n in (1, 2))
    batch_size = config.train.batch_size
    speed = about["train_flops_per_image"] * batch_size / train_seconds / len(devices)
    peak = _peak(devices[0])
    return about | {
        "compile_seconds": compile_seconds,
        "train_step_seconds": train_seconds,
        "train_images_per_second": batch_size / train_seconds,
        "train_planned_memory_gib": planned.total / 2**30,
        "train_peak_memory_gib": train_memory,
        "train_flops_per_second_and_device": speed,
        "share_of_bf16_peak": peak and speed / peak,
        "one_step_images_per_second": sample_batch / one,
        "two_step_images_per_second": sample_batch / two,
        "peak_memory_gib": _peak_memory_gib(),
    }


def fit(config: ConfigDict, topology: str, slices: int = 1) -> dict[str, Any]:
    """Compiles the training step of a config for TPUs that need not be here.

    With "jax_platforms" at cpu: a network chooses its attention by the devices of JAX.

    Args:
      config: the whole config.
      topology: generation and shape of a slice, as v5e:4x4.
      slices: how many.

    Returns:
      Numbers by name, and what each device would hold. The least time of a step is that
      of its matrix products at the chip's peak.

    Raises:
      JcmError: for an unknown topology, a missing libtpu, or a step that does not fit.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # it would look for a TPU
    several = {"num_slices": slices} if slices > 1 else {}
    try:
        described = topologies.get_topology_desc(topology, "tpu", **several)
    except Exception as error:  # of many kinds, by libtpu
        reason = one_line(error, 120)
        raise JcmError(
            f"--topology={topology} cannot be compiled for ({reason}): pip install"
            " libtpu, and name one such as v5e:4x4, v5p:2x2x4 or v6e:4x4"
        ) from error
    devices = described.devices
    program = program_lib.create(config, _CLASSES, devices)
    about = _about(config, devices, program)
    started = time.perf_counter()
    with memory_plan.explain_exhaustion(config, devices):
        compiled = compile_step(program.traced)
    seconds = time.perf_counter() - started
    planned = memory_plan.make(
        program.state, program.frozen, program.batch, compiled, limit=None
    )
    peak = _peak(devices[0])
    step = about["train_flops_per_image"] * config.train.batch_size / len(devices)
    return about | {
        "compile_seconds": seconds,
        "train_planned_memory_gib": planned.total / 2**30,
        "train_planned_parts_mib": {
            name: round(size / 2**20) for name, size in planned.parts.items()
        },
        "least_train_step_seconds": peak and step / peak,
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
    cli.check_arguments(argv)
    config = cli.config()
    if config is None:
        raise JcmError("name a config, such as --config=configs/digits_cd.py")
    # What it costs the first time.
    jax.config.update("jax_enable_compilation_cache", False)
    if _TOPOLOGY.value:
        if _PROFILE.value:
            raise JcmError("--profile needs a step that runs: leave out --topology")
        jax.config.update("jax_platforms", "cpu")  # nothing is for a GPU that is here
        found = fit(config, _TOPOLOGY.value, _SLICES.value)
    else:
        distributed.initialize(config)
        found = measure(
            config,
            repeats=_REPEATS.value,
            sample_batch=_BATCH.value,
            profile=_PROFILE.value,
        )
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    cli.run(main)
