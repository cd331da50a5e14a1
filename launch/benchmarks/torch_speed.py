"""Measures a training step and a sampler in PyTorch, and prints JSON.

    python launch/benchmarks/torch_speed.py CASE.json --variant=compiled

`cpu_table.py` and `gpu_table.py` write the case and run this with the Python that has
PyTorch. The names of the numbers are those of `jcm benchmark speed`.
"""

import argparse
import contextlib
import functools
import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch_layers
from torch.utils.flop_counter import (
    FlopCounterMode,
    conv_backward_flop,
    conv_flop,
)
from torch_step import Training

VARIANTS = ("eager", "channels_last", "compiled")

_WARM_UP = 4


def main() -> None:
    """Prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", help="file that `cases.py` has written")
    parser.add_argument("--variant", choices=VARIANTS, default="eager")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--sample_batch", type=int, default=64)
    parser.add_argument("--check", help="file of `cases.py` to compare with (.npz)")
    arguments = parser.parse_args()
    with open(arguments.case, encoding="utf-8") as file:
        case = json.load(file)
    if hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    if arguments.check:
        case["dtype"] = "float32"
        found = check(case, arguments.check)
    else:
        found = measure(case, arguments)
    print(json.dumps(found), flush=True)


def measure(case: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Times the training step and the sampler of a case."""
    device, on_gpu = arguments.device, arguments.device == "cuda"
    training = Training(
        case,
        device,
        channels_last=arguments.variant == "channels_last" or on_gpu,
        compiled=arguments.variant == "compiled",
    )
    _, compile_seconds = _timed(training.step, on_gpu)
    whole_peak = _peak_gib(on_gpu)
    _reset_peak()
    step = _measured(training.step, arguments.repeats, on_gpu)
    found = {
        "torch": torch.__version__,
        "variant": arguments.variant,
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in training.student.parameters()),
        "batch_size": case["batch_size"],
        # The first step includes compilation, but is mostly a step without it.
        "compile_seconds": max(compile_seconds - step["seconds"], 0.0),
        "train_step": step,
        "train_images_per_second": case["batch_size"] / step["seconds"],
        "train_peak_memory_gib": _peak_gib(on_gpu),
        "sampling": {},
    }
    for title, sigmas in case["schedules"].items():
        count = arguments.sample_batch
        sample = functools.partial(training.sample, count, sigmas)
        sample()  # compiles
        one = _measured(sample, arguments.repeats, on_gpu)
        found["sampling"][title] = one | {"images_per_second": count / one["seconds"]}
    return found | {"peak_memory_gib": max(whole_peak, _peak_gib(on_gpu))}


def check(case: dict[str, Any], file: str) -> dict[str, Any]:
    """Compares network, loss and FLOPs with the numbers of jcm in a file.

    Returns:
      The largest difference from jcm's output of the network, with the largest value;
      the loss; parameters; FLOPs of a training step.
    """
    training = Training(case, "cpu", channels_last=False, compiled=False)
    with np.load(file) as arrays:
        params = {
            name.removeprefix("params/"): arrays[name]
            for name in arrays
            if name.startswith("params/")
        }
        x, images, noise = (
            torch.from_numpy(arrays[name]).permute(0, 3, 1, 2).contiguous()
            for name in ("x", "images", "noise")
        )
        expected = arrays["out"]
        num_scales = int(arrays["num_scales"])
        c_noise, index = (torch.from_numpy(arrays[n]) for n in ("c_noise", "index"))
        if training.lpips is not None:
            training.lpips.load(
                {
                    name.removeprefix("lpips/"): torch.from_numpy(arrays[name])
                    for name in arrays
                    if name.startswith("lpips/")
                }
            )
    for denoiser in (training.student, training.teacher, training.target):
        if denoiser is not None:
            torch_layers.load(denoiser.network, params)
    labels = training.labels
    if labels is not None:
        labels.zero_()
    with torch.no_grad():
        out = training.student.network(x, c_noise, labels)
    difference = np.abs(out.permute(0, 2, 3, 1).numpy() - expected).max()
    mine = training.loss(images, noise, index, num_scales).item()
    aten = torch.ops.aten
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            aten.convolution: _flops_of_convolution,
            aten.convolution_backward: _flops_of_gradient,
        },
    )
    # The kernel for attention on a CPU is not counted.
    backend = torch.nn.attention.SDPBackend.MATH
    with counter, torch.nn.attention.sdpa_kernel(backend):
        training.step()
    return {
        "largest_difference": float(difference),
        "largest_value": float(np.abs(expected).max()),
        "loss": mine,
        "parameters": sum(p.numel() for p in training.student.parameters()),
        "train_flops": counter.get_total_flops(),
    }


def _flops_of_convolution(x: Any, w: Any, *others: Any, **named: Any) -> int:
    # The FIR filters, which have groups, are no convolutions in jcm.
    return 0 if others[-1] > 1 else conv_flop.__wrapped__(x, w, *others, **named)


def _flops_of_gradient(grad: Any, x: Any, w: Any, *others: Any, **named: Any) -> int:
    if others[-2] > 1:
        return 0
    return conv_backward_flop.__wrapped__(grad, x, w, *others, **named)


def _measured(
    function: Callable[[], Any], repeats: int, on_gpu: bool
) -> dict[str, Any]:
    """Times several calls one by one, after as many to warm up as for jcm."""
    for _ in range(_WARM_UP):
        _timed(function, on_gpu)
    seconds, user, system = [], [], []
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_SELF)
        seconds.append(_timed(function, on_gpu)[1])
        after = resource.getrusage(resource.RUSAGE_SELF)
        user.append(after.ru_utime - before.ru_utime)
        system.append(after.ru_stime - before.ru_stime)
    median = statistics.median(seconds)
    return {
        "seconds": median,
        "seconds_each": seconds,
        "spread": (max(seconds) - min(seconds)) / median,
        "user_cpu_seconds": statistics.median(user),
        "system_cpu_seconds": statistics.median(system),
        "cores_in_use": (sum(user) + sum(system)) / sum(seconds),
    }


def _timed(function: Callable[[], Any], on_gpu: bool) -> tuple[Any, float]:
    started = time.perf_counter()
    result = function()
    if on_gpu:
        torch.cuda.synchronize()
    return result, time.perf_counter() - started


def _reset_peak() -> None:
    """Lets the peak memory of this process start at what it uses now, on Linux."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _peak_gib(on_gpu: bool) -> float:
    if on_gpu:
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
