"""Compares jcm with PyTorch on a GPU, and prints a table.

    python launch/benchmarks/gpu_table.py --out=build/gpu.jsonl

Two training steps with LPIPS are measured: consistency distillation on CIFAR-10 (512
images) and on ImageNet 64x64 (64 images, without `remat`), both in bfloat16; and one-
and two-step samples. PyTorch runs under autocast, with channels last, and compiled.
Each part is a process of its own with a time limit, and its result is written to --out
as soon as it is known. --torch names another Python that has PyTorch. --tiny measures
small networks, also on a CPU, and --check compares the numbers of both instead.
"""

import argparse
import pathlib
import sys
import tempfile
import time
from typing import Any

import running

# By config: the settings, the batch of the samples and the seconds for each program.
_BFLOAT16 = {"model.dtype": "bfloat16", "loss.metric_dtype": "bfloat16"}
_CASES: dict[str, tuple[dict[str, Any], int, float]] = {
    "cifar10_cd": (_BFLOAT16 | {"train.batch_size": 512}, 512, 150),
    "imagenet64_cd": (
        _BFLOAT16 | {"train.batch_size": 64, "model.remat": []},
        64,
        190,
    ),
}
_TINY = {
    "data.image_size": 16,
    "loss.metric_size": 32,
    "model.nf": 8,
    "model.ch_mult": [1, 2],
    "model.attn_resolutions": [8],
    "model.num_res_blocks": 1,
    "model.adm.head_channels": 8,
    "train.batch_size": 4,
}
_PROGRAMS = {"jcm": "jcm", "compiled": "PyTorch, compiled"}
_Results = dict[tuple[str, str], dict[str, Any]]


def main() -> None:
    """Measures all parts and prints the table."""
    arguments = _parse()
    started, results = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as folder:
        for config, (settings, samples, limit) in _CASES.items():
            if arguments.tiny:
                settings, samples = settings | _TINY, 8
            case = running.Case(f"configs/{config}.py", settings, pathlib.Path(folder))
            if arguments.check:
                case.check(arguments.torch)
                continue
            for program in _PROGRAMS:
                left = arguments.limit - (time.monotonic() - started)
                if left < 5:
                    break
                found = _part(arguments, case, program, samples, min(limit, left))
                results[config, program] = found
                print(f"{config}, {program}: {_summary(found)}", file=sys.stderr)
                if arguments.out:
                    record = {"config": config, "program": program}
                    running.append(arguments.out, record | found)
    if not arguments.check:
        print(table(results))


def _parse() -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=10, help="timed steps (10)")
    parser.add_argument("--torch", default=sys.executable, help="Python with PyTorch")
    parser.add_argument("--device", default="cuda", help="PyTorch's device (cuda)")
    parser.add_argument("--limit", type=float, default=570, help="seconds in all (570)")
    parser.add_argument("--out", help="file to which each result is appended (JSON)")
    parser.add_argument("--tiny", action="store_true", help="networks for tests")
    parser.add_argument("--check", action="store_true", help="compare numbers")
    return parser.parse_args()


def _part(
    arguments: argparse.Namespace,
    case: running.Case,
    program: str,
    samples: int,
    limit: float,
) -> dict[str, Any]:
    """Runs one program on one case; returns its numbers, or an error."""
    flags = {"repeats": arguments.repeats, "sample_batch": samples}
    if program == "jcm":
        command = case.jcm(flags)
    else:
        flags |= {"variant": program, "device": arguments.device}
        command = case.torch(arguments.torch, flags)
    found = running.run(command, limit)
    return found.numbers or {"error": found.error}


def _summary(found: dict[str, Any]) -> str:
    if "error" in found:
        return found["error"]
    return f"{found['train_step']['seconds']:.3f} s a step"


def table(results: _Results) -> str:
    """Returns the table of all parts as Markdown."""
    header = [
        *("", "step", "images/s", "of the bf16 peak", "memory", "compile time"),
        "samples/s, one step; two",
    ]
    rows = []
    for (config, program), found in results.items():
        title = f"`{config}`, {_PROGRAMS[program]}"
        if "error" in found:
            rows.append([title, found["error"].splitlines()[-1], *[""] * 5])
            continue
        step = found["train_step"]["seconds"]
        share = _share(results.get((config, "jcm"), {}), step)
        samples = [
            f"{each['images_per_second']:,.0f}" for each in found["sampling"].values()
        ]
        rows.append(
            [
                *(title, f"{step * 1e3:.0f} ms"),
                f"{found['train_images_per_second']:,.0f}",
                f"{share:.0%}" if share else "–",
                f"{found['train_peak_memory_gib']:.0f} GiB",
                f"{found['compile_seconds']:.0f} s",
                "; ".join(samples),
            ]
        )
    return running.markdown(header, rows)


def _share(of_jcm: dict[str, Any], step: float) -> float | None:
    """Returns the share of the peak; the FLOPs of a step are those that jcm counts."""
    share = of_jcm.get("share_of_bf16_peak")
    return share and share * of_jcm["train_step"]["seconds"] / step


if __name__ == "__main__":
    main()
