"""Compares jcm with PyTorch on the cores of this machine, and prints a table.

    pip install torch --index-url https://download.pytorch.org/whl/cpu
    python launch/benchmarks/cpu_table.py --rounds=5 --out=build/cpu.jsonl

In each round, every program measures the CD step, the CT step and one-step samples in a
process of its own, one program after the other: jcm by `jcm benchmark speed`, with its
own defaults, and PyTorch in three ways: eager, with channels last, and compiled. The
PyTorch programs are in `torch_*.py`; --torch names another Python that has PyTorch.
--check compares the networks, the losses and the FLOPs instead.
"""

import argparse
import itertools
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import running

_PROGRAMS = {
    "jcm": "jcm",
    "eager": "PyTorch, eager",
    "channels_last": "PyTorch, channels last",
    "compiled": "PyTorch, compiled",
}
# NCSN++ with 32 features on 32x32 images in float32.
_CASE = {
    "loss.metric": "l2",
    "model.nf": 32,
    "model.num_res_blocks": 2,
    "train.batch_size": 16,
}
_TINY = {
    "loss.metric": "l2",
    "data.image_size": 16,
    "model.nf": 8,
    "model.ch_mult": [1, 2],
    "model.attn_resolutions": [8],
    "model.num_res_blocks": 1,
    "train.batch_size": 4,
}
_METHODS = ("cd", "ct")
# Above this spread from step to step, times are reported as scattered.
_STEADY = 0.1
# One measurement: the method, the program and its numbers.
_Record = tuple[str, str, dict[str, Any]]


def main() -> None:
    """Measures all rounds and prints the table."""
    arguments = _parse()
    programs = set(arguments.only.split(","))
    if arguments.history and not ("jcm" in programs and len(programs) > 1):
        sys.exit("--history compares jcm with PyTorch: measure both, without --only")
    settings = _TINY if arguments.tiny else _CASE
    with tempfile.TemporaryDirectory() as folder:
        cases = {
            method: running.Case(
                f"configs/cifar10_{method}.py", settings, pathlib.Path(folder)
            )
            for method in _METHODS
        }
        if arguments.check:
            for case in cases.values():
                case.check(arguments.torch)
            return
        records = list(_measure(arguments, cases))
    print(table(records))
    if arguments.history:
        append_row(arguments.history, _history(records))


def _parse() -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds (5)")
    parser.add_argument("--repeats", type=int, default=5, help="steps in a round (5)")
    parser.add_argument("--torch", default=sys.executable, help="Python with PyTorch")
    parser.add_argument("--out", help="file to which each result is appended (JSON)")
    parser.add_argument("--only", default=",".join(_PROGRAMS), help="programs to run")
    parser.add_argument("--history", help="page to whose history a row is added")
    parser.add_argument("--tiny", action="store_true", help="a network for tests")
    parser.add_argument("--check", action="store_true", help="compare numbers")
    return parser.parse_args()


def _measure(
    arguments: argparse.Namespace, cases: dict[str, running.Case]
) -> Iterable[_Record]:
    """Runs all programs in turn, and yields what each has measured."""
    flags = {"repeats": arguments.repeats}
    # Empty in the first round, which so measures the whole compilation.
    cache = next(iter(cases.values())).folder / "inductor"
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(cache)}
    turns = itertools.product(
        range(arguments.rounds), cases.items(), arguments.only.split(",")
    )
    for number, (method, case), program in turns:
        command = (
            case.jcm(flags)
            if program == "jcm"
            else case.torch(arguments.torch, flags | {"variant": program})
        )
        numbers = running.run(command, environment=environment).required()
        print(
            f"round {number + 1}, {method}, {_PROGRAMS[program]}:"
            f" {_step(numbers):.3f} s a step, {_samples(numbers):.0f} samples/s",
            file=sys.stderr,
            flush=True,
        )
        if reason := _why_scattered(numbers):
            print(f"  the times scatter: {reason}", file=sys.stderr, flush=True)
        if arguments.out:
            record = {"round": number, "method": method, "program": program}
            running.append(arguments.out, record | numbers)
        yield method, program, numbers


def table(records: list[_Record]) -> str:
    """Returns the table of all measurements as Markdown.

    A cell has the median over the rounds; the spread is that of all single steps. After
    the first round, PyTorch finds what it has compiled in its cache.
    """
    programs = [name for name in _PROGRAMS if any(p == name for _, p, _ in records)]

    def row(
        title: str, form: str, method: str, value: Callable[[list[Any]], float]
    ) -> list[str]:
        each = (
            [n for m, p, n in records if p == program and method in ("", m)]
            for program in programs
        )
        return [title, *(format(value(numbers), form) for numbers in each)]

    rows = []
    for method in _METHODS:
        name = method.upper()
        rows += [
            row(f"{name} step, s", ".3f", method, _median_of(_step)),
            row(f"{name} step: spread", ".0%", method, _spread),
            row(f"{name} step: CPU s", ".2f", method, _median_of(_step_cpu)),
            row(f"{name}: first compilation, s", ".1f", method, _first_compilation),
            row(f"{name}: compilation, s", ".1f", method, _median_of(_compilation)),
            row(f"{name} step: peak GiB", ".2f", method, _median_of(_memory)),
            row(f"{name}: peak GiB of all", ".2f", method, _median_of(_whole_memory)),
        ]
    rows.append(row("one-step samples/s", ".1f", "", _median_of(_samples)))
    found = running.markdown(["", *(_PROGRAMS[p] for p in programs)], rows)
    count = sum(bool(_why_scattered(numbers)) for _, _, numbers in records)
    return f"{found}\n\nThe times of {count} of {len(records)} measurements scatter."


def _history(records: list[_Record]) -> list[str]:
    """Returns the row of the history: this commit, and the numbers of jcm."""
    commit = _git("log", "-1", "--format=%cs, `%h`")
    changed = ", changed" if _git("status", "--porcelain", "--untracked=no") else ""
    cells = [commit + changed]
    mine = {m: [n for q, p, n in records if (q, p) == (m, "jcm")] for m in _METHODS}
    best = {
        method: min(
            (_median_of(_step)([n for m, p, n in records if (m, p) == (method, each)]))
            for each in {p for _, p, _ in records} - {"jcm"}
        )
        for method in _METHODS
    }
    for method in _METHODS:
        step = _median_of(_step)(mine[method])
        cells.append(f"{step:.2f} s ({step / best[method]:.2f})")
    samples = _median_of(_samples)([n for m in _METHODS for n in mine[m]])
    compilations = (_median_of(_compilation)(mine[method]) for method in _METHODS)
    cells += [f"{samples:.0f}", ", ".join(f"{each:.0f} s" for each in compilations)]
    return [*cells, f"{_median_of(_memory)(mine['cd']):.2f} GiB"]


def _git(*arguments: str) -> str:
    """Returns what git says about this repository."""
    command = ["git", "-C", str(running.ROOT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _why_scattered(numbers: dict[str, Any]) -> str:
    """Returns why the times of a program are not to be trusted; "" if they are."""
    step = numbers["train_step"]
    return step.get("scattered") or (
        f"the spread is {step['spread']:.0%}" if step["spread"] > _STEADY else ""
    )


def append_row(page: str, cells: Sequence[str]) -> None:
    """Appends a row to the table of a page whose first column is "commit".

    Args:
      page: a file in Markdown.
      cells: the texts of the row.
    """
    file = pathlib.Path(page)
    lines = file.read_text(encoding="utf-8").split("\n")
    end = next(i for i, line in enumerate(lines) if line.startswith("| commit |"))
    while lines[end].startswith("|"):
        end += 1
    lines.insert(end, running.row(cells))
    file.write_text("\n".join(lines), encoding="utf-8")


def _median_of(
    value: Callable[[dict[str, Any]], float],
) -> Callable[[list[dict[str, Any]]], float]:
    return lambda all_numbers: statistics.median(map(value, all_numbers))


def _step(numbers: dict[str, Any]) -> float:
    return numbers["train_step"]["seconds"]


def _step_cpu(numbers: dict[str, Any]) -> float:
    step = numbers["train_step"]
    return step["user_cpu_seconds"] + step["system_cpu_seconds"]


def _compilation(numbers: dict[str, Any]) -> float:
    return numbers["compile_seconds"]


def _first_compilation(all_numbers: list[dict[str, Any]]) -> float:
    return _compilation(all_numbers[0])


def _memory(numbers: dict[str, Any]) -> float:
    return numbers["train_peak_memory_gib"]


def _whole_memory(numbers: dict[str, Any]) -> float:
    return numbers["peak_memory_gib"]


def _samples(numbers: dict[str, Any]) -> float:
    return numbers["sampling"]["1 step"]["images_per_second"]


def _spread(all_numbers: list[dict[str, Any]]) -> float:
    each = [s for n in all_numbers for s in n["train_step"]["seconds_each"]]
    return (max(each) - min(each)) / statistics.median(each)


if __name__ == "__main__":
    main()
