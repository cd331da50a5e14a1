"""The speed and cost of a config, as JSON: `jcm benchmark speed`."""

import argparse
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import topologies
from ml_collections import ConfigDict

from jcm import networks
from jcm.commands import cli, flags
from jcm.commands.benchmark import machine
from jcm.commands.benchmark.measuring import Timing, measured, print_json, timed
from jcm.diffusion.sampler import Sampler
from jcm.diffusion.schedule import Schedule
from jcm.methods import Frozen
from jcm.model import build
from jcm.runtime import cores, distributed, files, memory
from jcm.runtime import flops as flops_lib
from jcm.runtime.errors import JcmError, one_line
from jcm.runtime.paths import expanded
from jcm.training import memory_plan, start
from jcm.training import program as program_lib
from jcm.training.program import Program
from jcm.training.step import compile_step

# Peak rate of dense bfloat16 matrix products in FLOP/s, by a part of the device's name.
_PEAK = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}
# The number of classes of a class-conditional network, as in ImageNet.
_CLASSES = 1000
_TRACED_STEPS = 3


def measure(
    config: ConfigDict, *, repeats: int, sample_batch: int, profile: str = ""
) -> dict[str, Any]:
    """Times the training step and the sampler of a config on random images.

    Args:
      config: the whole config.
      repeats: number of timed calls, after one that is not timed.
      sample_batch: images per call of the sampler.
      profile: folder for a trace of three more steps, written by process 0; "" for
        none.

    Returns:
      Numbers by name; `Timing` explains those of the step and of each way to sample.
      FLOPs are counted by `flops.count`; those that `remat` computes again do not count
      for the shares of the peak and of the measured convolutions. `compile_seconds`
      includes the time of tracing. Peak memory of the
      training is that after the compilation where the system can tell.
    """
    if profile and jax.process_index() == 0:
        files.new_folder(profile).mkdir(parents=True, exist_ok=True)
    devices = jax.devices()
    program = create_program(config, devices)
    traced, trace_seconds = timed(lambda: program.traced)
    compiled, compile_seconds = timed(lambda: compile_step(traced))
    about = _about(config, devices, program)
    compile_memory = _peak_memory_gib()
    machine.reset_peak_memory()
    plan = _plan(program, compiled)
    logging.info("%s", plan)
    memory_plan.keep(plan)
    training = Training(program, compiled)
    step = measured("the training step", training.step, repeats)
    train_memory = _peak_memory_gib()
    logging.info("a training step takes %.3g s", step.median)
    if profile:
        _write_profile(expanded(profile), training)
    # One sampler, since all schedules run the same compiled step.
    sampler = Sampler(program.method.denoiser, batch_size=sample_batch)
    sampling = {
        schedule.title: _time_sampling(
            sampler, training.params, schedule, sample_batch, repeats
        )
        for schedule in build.default_schedules(config, program.method.denoiser)
    }
    return about | {
        "settings": cores.settings(),
        "trace_seconds": trace_seconds,
        "compile_seconds": trace_seconds + compile_seconds,
        "compile_peak_memory_gib": compile_memory,
        "train_step": step.numbers(),
        "train_images_per_second": config.train.batch_size / step.median,
        "train_planned_memory_gib": plan.total / 2**30,
        "train_peak_memory_gib": train_memory,
        **_shares(config, devices, about["train_flops_per_image"], step),
        "sampling": {
            title: {"images_per_second": sample_batch / each.median} | each.numbers()
            for title, each in sampling.items()
        },
        "peak_memory_gib": max(compile_memory, _peak_memory_gib()),
    }


def _shares(
    config: ConfigDict, devices: Sequence[jax.Device], per_image: float, step: Timing
) -> dict[str, Any]:
    """Returns how fast a training step computes, compared with what devices can do."""
    speed = per_image * config.train.batch_size / step.median
    peak = _peak(devices[0])
    found = {
        "train_flops_per_second_and_device": speed / len(devices),
        "share_of_bf16_peak": peak and speed / len(devices) / peak,
    }
    if jax.process_count() == 1:
        possible = machine.convolution_flops_per_second(devices, config.model.dtype)
        found |= {
            "convolution_flops_per_second": possible,
            "share_of_convolution_speed": speed / possible,
        }
    return found


def fit(config: ConfigDict, topology: str, slices: int = 1) -> dict[str, Any]:
    """Compiles the training step of a config for TPUs that need not be here.

    Set "jax_platforms" to "cpu" before, since a network chooses its attention by JAX's
    default devices. The compiler optimises as `jax_optimization_level` says.

    Args:
      config: the whole config.
      topology: generation and shape of a slice, such as v5e:4x4.
      slices: number of slices.

    Returns:
      Numbers by name, with the memory that each device needs. The least time of a step
      is that of its matrix products at the peak rate of the chip. The compiler
      estimates another time, and the bytes that a device reads and writes.

    Raises:
      JcmError: if the topology is unknown, libtpu is missing, or the step does not fit.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu would look for a TPU
    # Only one process can use a TPU, but several can compile for it.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    several = {"num_slices": slices} if slices > 1 else {}
    try:
        described = topologies.get_topology_desc(topology, "tpu", **several)
    except Exception as error:  # libtpu raises many types
        reason = one_line(error, 120)
        raise JcmError(
            f"cannot compile for --topology={topology} ({reason}): pip install libtpu,"
            " and use a topology such as v5e:4x4, v5p:2x2x4 or v6e:4x4"
        ) from error
    devices = described.devices
    program = create_program(config, devices)
    about = _about(config, devices, program)
    with memory_plan.explain_exhaustion(config, devices):
        compile_it = functools.partial(compile_step, platform="tpu")
        compiled, seconds = timed(lambda: compile_it(program.traced))
    plan = _plan(program, compiled)
    peak = _peak(devices[0])
    step = about["train_flops_per_image"] * config.train.batch_size / len(devices)
    return about | {
        "compile_seconds": seconds,
        "train_planned_memory_gib": plan.total / 2**30,
        "train_planned_parts_mib": {
            name: round(size / 2**20) for name, size in plan.parts.items()
        },
        "least_train_step_seconds": peak and step / peak,
        **_estimate(program, compiled),
    }


def _estimate(program: Program, compiled: jax.stages.Compiled) -> dict[str, Any]:
    """Returns what the compiler estimates for a step; None where it estimates nothing.

    It counts one iteration of each loop, such as that over the two stages of Heun's
    method. The numbers are multiplied by the ratio of all FLOPs to those it counts.
    """
    jaxpr = program.traced.jaxpr
    loops = flops_lib.count(jaxpr) / flops_lib.count(jaxpr, loops_once=True)
    found = compiled.cost_analysis() or {}
    seconds, size = found.get("optimal_seconds"), found.get("bytes accessed")
    return {
        "optimization_level": jax.config.values["jax_optimization_level"],
        "estimated_train_step_seconds": seconds and seconds * loops,
        "estimated_train_step_gib": size and size * loops / 2**30,
    }


def create_program(config: ConfigDict, devices: Sequence[jax.Device]) -> Program:
    """Returns the training step of a config; no teacher is trained for it.

    Args:
      config: the whole config.
      devices: the devices to train on.

    Raises:
      JcmError: for settings that do not fit together or do not fit the devices.
    """
    teachers = start.find_teachers(config, _CLASSES)
    denoisers = {name: teacher.denoiser for name, teacher in teachers.items()}
    return program_lib.create(config, _CLASSES, denoisers, devices)


class Training:
    """A training step with random weights and images on the devices.

    Attributes:
      params: the parameters before the first step.
      compiled: the step.
    """

    def __init__(self, program: Program, compiled: jax.stages.Compiled):
        """Allocates everything.

        Args:
          program: from `create_program`.
          compiled: its step.
        """
        method = program.method
        self.params = jax.jit(program.network.init)(jax.random.key(0))
        # A copy of the parameters, since the step overwrites those of the state.
        new_state = jax.jit(program.new_state, out_shardings=_placement(program.state))
        self._state = new_state(self.params)
        memory.release()
        frozen = Frozen(
            teachers={
                name: jax.jit(denoiser.network.init)(jax.random.key(1))
                for name, denoiser in program.teachers.items()
            },
            constants=method.constants,
        )
        self._frozen = jax.device_put(frozen, _placement(program.frozen))
        self._batch = _random_batch(program)
        self.compiled = compiled

    def step(self) -> Any:
        """Takes a training step, and returns its metrics."""
        self._state, metrics = self.compiled(self._state, self._frozen, self._batch)
        return metrics


def _random_batch(program: Program) -> dict[str, jax.Array]:
    """Returns random images with random labels on the devices."""
    rng = np.random.default_rng(0)
    shape = {name: array.shape for name, array in program.batch.items()}
    batch = {
        "image": rng.integers(0, 256, shape["image"], np.uint8),
        "label": rng.integers(0, 10, shape["label"], np.int32),
        "notice": np.zeros(shape["notice"], np.int32),
    }
    return jax.device_put(batch, _placement(program.batch))


def _placement(tree: Any) -> Any:
    """Returns the sharding of each array in a tree."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def _time_sampling(
    sampler: Sampler,
    params: networks.Params,
    schedule: Schedule,
    count: int,
    repeats: int,
) -> Timing:
    """Times the sampling of a batch."""
    labels = [1] * count if sampler.denoiser.num_classes else None
    key = jax.random.key(2)
    return measured(
        f"samples in {schedule.title}",
        lambda: sampler(params, key, range(count), schedule, labels),
        repeats,
    )


def _write_profile(folder: pathlib.Path, training: Training) -> None:
    """Traces a few training steps; process 0 writes the trace and the program."""
    writes = jax.process_index() == 0
    if writes:
        files.write_text(folder / "step.hlo", training.compiled.as_text() or "")
        jax.profiler.start_trace(folder)
    for _ in range(_TRACED_STEPS):
        jax.block_until_ready(training.step())
    if writes:
        jax.profiler.stop_trace()


def _about(
    config: ConfigDict, devices: Sequence[jax.Device], program: Program
) -> dict[str, Any]:
    """Returns the numbers that are known before anything is compiled."""
    without_remat = program
    if config.model.remat:
        changed = config.copy_and_resolve_references()
        changed.model.remat = ()
        without_remat = create_program(changed, devices)
    needed = flops_lib.count(without_remat.traced.jaxpr)
    done = flops_lib.count(program.traced.jaxpr)
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


def _plan(program: Program, compiled: jax.stages.Compiled) -> memory_plan.Plan:
    """Returns the memory that the training step needs."""
    return memory_plan.make(
        program.state, program.frozen, program.batch, compiled, limit=None
    )


def _peak(device: jax.Device) -> float | None:
    """Returns the peak rate of bfloat16 matrix products in FLOP/s, or None."""
    kind = device.device_kind
    return next((value for name, value in _PEAK.items() if name in kind), None)


def _peak_memory_gib() -> float:
    """Returns the peak memory of the device, or else of this process, in GiB."""
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return peak / 2**30 if peak else memory.peak_gib()


def main(arguments: argparse.Namespace) -> None:
    """Prints the speed and cost of a config.

    Args:
      arguments: the flags `flags.SPEED` and `flags.PROCESSES`.

    Raises:
      JcmError: for any error that the user can fix.
    """
    config = cli.required_config(arguments)
    # Measure the compilation, instead of reading its result from the cache.
    jax.config.update("jax_enable_compilation_cache", False)
    if not arguments.topology:
        distributed.initialize(config, **flags.values(arguments, flags.PROCESSES))
        found = measure(
            config,
            repeats=arguments.repeats,
            sample_batch=arguments.sample_batch,
            profile=arguments.profile,
        )
    elif arguments.profile:
        raise JcmError("--profile needs a step that runs: drop --topology")
    else:
        jax.config.update("jax_platforms", "cpu")  # ignore a GPU of this machine
        if jax.config.values["jax_optimization_level"] == "UNKNOWN":
            # At the usual level, ImageNet-64 takes most of an hour on two cores.
            jax.config.update("jax_optimization_level", "O0")
        found = fit(config, arguments.topology, arguments.slices)
    print_json(found)
