"""Trains for half an hour with frequent saves, grids and scores; watches the process.

python tests/campaigns/soak.py --minutes=30 [--folder=DIR] [--csv=FILE]

Every few seconds it notes the memory, the open descriptors, the threads, and the files
for temporary use. After the first five minutes (of shorter runs, a third), memory must
stay within 5 %, descriptors and threads must not grow, and no temporary file may be
there at the end. The columns of memory have the median of the minute after the start-up
and that of the last one. Those of descriptors and threads have the minimum, since a
save in progress uses more of them. The exit code is 0 if all is flat.
"""

import argparse
import csv
import pathlib
import shutil
import signal
import statistics
import sys
import time

from programs import Place, Program

_FIELDS = {
    "train.num_steps": 10**6,
    "train.log_every": 1,
    "data.split": "train[:300]",
    "eval.scores": "('classifier',)",
    "eval.num_images": 100,
    "loss.scales": "adaptive",
    "loss.start_scales": 4,
    "loss.end_scales": 16,
    "train.averages": "('0.9', 'power:0.1')",
}
_BATCH = 16
_SECONDS = 3  # between two samples
_START_UP, _WINDOW = 300, 60
# The most by which a column may grow from the first window to the last.
_MOST = {"rss_mib": 1.05, "anonymous_mib": 1.05, "descriptors": 1.1, "threads": 1.1}
_PREEMPTED = 75


def sample(place: Place, pid: int) -> dict[str, float]:
    """Returns what a process uses now.

    Raises:
      OSError: if it has ended.
    """
    process = pathlib.Path(f"/proc/{pid}")
    lines = (process / "status").read_text().splitlines()
    status = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
    numbers = place.workdir / "metrics.jsonl"
    step = 0
    if numbers.exists():
        with numbers.open("rb") as file:
            file.seek(max(numbers.stat().st_size - 2000, 0))
            *_, last, _ = [b"", *file.read().split(b"\n")]
        step = int(last.split(b":")[1].split(b",")[0]) if last else 0
    return {
        "step": step,
        "rss_mib": int(status["VmRSS"].split()[0]) / 1024,
        "anonymous_mib": int(status["RssAnon"].split()[0]) / 1024,
        "descriptors": len(list((process / "fd").iterdir())),
        "threads": int(status["Threads"]),
        "temporary_files": sum(1 for _ in place.temporary.rglob("*")),
    }


def watch(place: Place, program: Program, seconds: float) -> list[dict[str, float]]:
    """Returns a sample of the process for each few seconds."""
    rows, end = [], program.started + seconds
    (process,) = program.processes
    while program.runs and (now := time.monotonic()) < end:
        row = {"seconds": round(now - program.started, 1)} | sample(place, process.pid)
        rows.append(row)
        time.sleep(_SECONDS)
    return rows


def judge(rows: list[dict[str, float]], start_up: float) -> dict[str, tuple]:
    """Returns for each column its first and last level, and whether it is flat.

    Args:
      rows: from `watch`.
      start_up: seconds that do not count.

    Raises:
      ValueError: if the run was too short.
    """
    counted = [row for row in rows if row["seconds"] >= start_up]
    if not counted:
        raise ValueError(f"the run ended before {start_up:.0f} s")
    window = min(_WINDOW, (rows[-1]["seconds"] - start_up) / 2)
    first = [r for r in counted if r["seconds"] <= start_up + window]
    last = [r for r in counted if r["seconds"] >= rows[-1]["seconds"] - window]
    found = {}
    for name, most in _MOST.items():
        of = statistics.median if name.endswith("_mib") else min
        a, b = (of(r[name] for r in part) for part in (first, last))
        found[name] = a, b, b <= a * most
    return found


def main() -> None:
    """Runs the training and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--every", type=int, default=50, help="steps between two saves")
    parser.add_argument("--folder", type=pathlib.Path, default="/tmp/jcm_soak")
    parser.add_argument("--csv", type=pathlib.Path, default="/tmp/jcm_soak.csv")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    place = Place(options.folder / "now", options.folder.with_name("jcm_soak_compiled"))
    fields = _FIELDS | {
        "train.checkpoint_every": options.every,
        "train.sample_every": options.every,
        "eval.every_kimg": options.every * _BATCH / 1000,
        "train.snapshot_every": 20 * options.every,
    }
    program = Program(
        place,
        [
            *("train", "--config=configs/digits_ct.py:smoke"),
            f"--workdir={place.workdir}",
            *(f"--config.{name}={value}" for name, value in fields.items()),
        ],
    )
    try:
        rows = watch(place, program, 60 * options.minutes)
        program.processes[0].send_signal(signal.SIGTERM)
    finally:
        program.processes[0].send_signal(signal.SIGTERM)
        codes = program.finish()
    with options.csv.open("w") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    left = [*program.left(), *map(str, place.temporary.iterdir())]
    found = judge(rows, min(_START_UP, 60 * options.minutes / 3))
    print(
        "| column | after the start | at the end | change | flat |\n"
        "|---|---|---|---|---|"
    )
    for name, (a, b, flat) in found.items():
        verdict = "yes" if flat else "NO"
        print(
            f"| {name} | {a:.1f} | {b:.1f} | {100 * (b / a - 1):+.1f} % | {verdict} |"
        )
    print(
        f"\n{rows[-1]['step']:.0f} steps, exit code {codes}, left: {left or 'nothing'}"
    )
    print(f"every sample is in {options.csv}")
    all_flat = all(flat for *_, flat in found.values())
    sys.exit(not all_flat or codes != [_PREEMPTED] or bool(left))


if __name__ == "__main__":
    main()
