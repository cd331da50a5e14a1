"""Damages checkpoints of small runs and compares how the runs end.

python tests/campaigns/damage.py --corruptions=10 [--seed=0] [--folder=DIR]

Each run is killed, a file of its newest checkpoint is truncated, deleted, or has one
bit flipped, and the run starts again. It must resume from that checkpoint or from the
one before, and end like a run that was left alone. The exit code is 0 if all do.
"""

import argparse
import pathlib
import random
import re
import shutil
import signal
import sys

from comparing import differences, outcome
from programs import Place, Program
from scenarios import SCENARIOS, Scenario

_SCENARIO = SCENARIOS["accumulate"]
_EVERY = _SCENARIO.fields["train.checkpoint_every"]
_HOW = ("truncated", "flipped", "missing")


def damage(folder: pathlib.Path, how: str, rng: random.Random) -> str:
    """Damages a file of a checkpoint and returns its name."""
    path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "truncated" or not content:
        path.write_bytes(content[: len(content) // 2])
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    return str(path.relative_to(folder))


def saved(place: Place) -> list[int]:
    """Returns the steps that have complete checkpoints, in ascending order."""
    names = [path.name for path in (place.workdir / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdigit())


def trial(folder: pathlib.Path, how: str, rng: random.Random) -> tuple[str, dict]:
    """Kills, damages and resumes a run; returns what was seen and what it left."""
    place = _new_place(folder)
    killed = _start(_SCENARIO, place)
    killed.until(lambda: len(saved(place)) > 1 and saved(place)[-1] >= 3 * _EVERY)
    killed.processes[0].send_signal(signal.SIGKILL)
    killed.finish()
    last = saved(place)[-1]
    file = damage(place.workdir / "checkpoints" / str(last), how, rng)
    again = _start(_SCENARIO, place)
    codes = again.finish()
    found = re.findall(r"resuming from step (\d+)", again.said)
    begun, aside = int(found[0]) if found else 0, "was moved to" in again.said
    # The run must not start again, or resume from an older step than necessary.
    right = begun == (last - _EVERY if aside else last) and codes == [0]
    shutil.rmtree(place.workdir / "damaged", ignore_errors=True)
    text = f"{how} | {file} of {last} | {begun} | {'yes' if aside else 'no'}"
    return text, outcome(place.folder) if right else {}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corruptions", type=int, default=10)
    parser.add_argument("--folder", type=pathlib.Path, default="/tmp/jcm_damage")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, good = random.Random(options.seed), 0
    place = _new_place(options.folder)
    if any(_start(_SCENARIO, place).finish()):
        sys.exit(f"a run without damage fails: see {place.log}")
    expected = outcome(place.folder)
    print(
        "| damage | of | resumed from | moved aside | equal |\n|---|---|---|---|---|",
        flush=True,
    )
    for number in range(options.corruptions):
        text, found = trial(options.folder, _HOW[number % len(_HOW)], rng)
        same = not differences(found, expected)
        good += same
        print(f"| {text} | {'yes' if same else 'NO'} |", flush=True)
    print(f"\n{good} of {options.corruptions} detected or harmless")
    sys.exit(good < options.corruptions)


def _new_place(folder: pathlib.Path) -> Place:
    shutil.rmtree(folder / "now", ignore_errors=True)
    return Place(folder / "now", folder / "compiled")


def _start(scenario: Scenario, place: Place) -> Program:
    return Program(place, scenario.arguments(place.workdir, place.folder))


if __name__ == "__main__":
    main()
