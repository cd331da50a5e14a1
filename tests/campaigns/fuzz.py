"""Damages files of every kind at random, reads them, and reports what that costs.

python tests/campaigns/fuzz.py --minutes=30 [--seed=0] [--processes=2] [--only=NAME]

Each file is read in a process that a lack of memory or of time ends without harm to the
others. A file must be refused by one line, or accepted, within the limits of
SECURITY.md. The exit code is 0 if all are. `--again=NAME:NUMBER` reads one file again,
as the report names it.
"""

import argparse
import collections
import dataclasses
import multiprocessing
import os
import pathlib
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection, wait

_TESTS = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(_TESTS), str(_TESTS.parent)]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import cost  # noqa: E402
import readers  # noqa: E402

import jcm  # noqa: E402
from jcm import config as config_lib  # noqa: E402

# A process may take more than a file may cost, so that it is measured. Beyond this it
# is ended.
_SLACK = 1024 * cost.MIB
_LONGEST_SECONDS = 3 * cost.SECONDS
# In seconds. A process that waits, such as for a pipe, takes no time of a core.
_LONGEST_WAIT = 60


@dataclasses.dataclass
class Tally:
    """What became of the files of one reader."""

    kinds: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    memory: tuple[int, str] = (0, "")
    seconds: tuple[float, str] = (0.0, "")

    def add(self, name: str, outcome: readers.Outcome) -> None:
        """Counts one file."""
        self.kinds[outcome.kind] += 1
        self.memory = max(self.memory, (outcome.memory, name))
        self.seconds = max(self.seconds, (outcome.seconds, name))


def make_sources(folder: pathlib.Path) -> readers.Sources:
    """Trains the smallest model for a few steps, on prepared digits."""
    config = config_lib.load(f"{_TESTS.parent}/configs/digits_edm.py:smoke")
    config.data.dir = str(folder / "prepared")
    config.eval.scores = ()
    config.model.ch_mult, config.model.attn_resolutions = (1,), ()
    config.train.num_steps = 2
    jcm.train(config, workdir=folder / "run")
    return readers.Sources(folder / "run", folder / "prepared")


def _work(connection: Connection, seeds: pathlib.Path, folder: pathlib.Path) -> None:
    """Reads the files that the connection names, in a process of its own."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the log quotes the files
    for name in readers.READERS:  # what is only slow the first time
        readers.mutations.copy(seeds / name, folder / name)
        try:
            readers.READERS[name].read(folder / name)
        except Exception as error:
            connection.send(f"{name}: a good file is not read: {error}")
            return
    connection.send(None)
    while job := connection.recv():
        name, number = job
        place = folder / "file"
        how = readers.changed(name, seeds, place, _rng(name, number))
        _limit(cost.allowed(place))
        try:
            outcome = readers.attempt(name, place)
        finally:
            _limit(None)
        connection.send((how, outcome))


def _limit(memory: int | None) -> None:
    """Ends this process if it takes too much; None lifts the limits."""
    most = resource.RLIM_INFINITY
    if memory is not None:
        used = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        most = used * resource.getpagesize() + memory + _SLACK
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    signal.setitimer(signal.ITIMER_PROF, 0 if memory is None else _LONGEST_SECONDS)


def _rng(name: str, number: int) -> random.Random:
    return random.Random(f"{name} {number}")


class Worker:
    """A process that reads files, and is replaced if one of them ends it."""

    def __init__(self, seeds: pathlib.Path, folder: pathlib.Path):
        self._given = seeds, folder
        self.job: tuple[str, int] | None = None
        self.started = time.monotonic()
        self._start()

    def _start(self) -> None:
        seeds, folder = self._given
        readers.mutations.remove(folder)
        folder.mkdir(parents=True)
        self.connection, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        given = theirs, seeds, folder
        self.process = context.Process(target=_work, args=given, daemon=True)
        self.process.start()
        theirs.close()

    def give(self, job: tuple[str, int]) -> None:
        """Begins to read a file."""
        self.job, self.started = job, time.monotonic()
        self.connection.send(job)

    def result(self) -> tuple[str, readers.Outcome] | None:
        """Returns how the file was changed and what became of it; None at the start."""
        try:
            found = self.connection.recv()
            if isinstance(found, str):
                raise RuntimeError(found)
            return found
        except EOFError:
            self.process.join()
            code = self.process.exitcode or 0
            if self.job is None:
                raise RuntimeError(
                    f"a process ended with {code} at its start"
                ) from None
            cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            self._start()
            text = f"the process was ended: {cause}"
            return "unknown", readers.Outcome("budget", text, 0, 0.0)

    def end(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.join()


def campaign(
    seeds: pathlib.Path, folder: pathlib.Path, given: argparse.Namespace
) -> dict[str, Tally]:
    """Reads files until the time is over, and prints those that fail."""
    names = [given.only] if given.only else list(readers.READERS)
    tallies = {name: Tally() for name in names}
    workers = [Worker(seeds, folder / str(i)) for i in range(given.processes)]
    number, end = given.seed * 10**6, time.monotonic() + 60 * given.minutes
    while time.monotonic() < end or any(worker.job for worker in workers):
        for each in wait([w.connection for w in workers], timeout=5):
            worker = next(w for w in workers if w.connection is each)
            found = worker.result()
            if found and worker.job:
                how, outcome = found
                name = f"{worker.job[0]}:{worker.job[1]}"
                tallies[worker.job[0]].add(name, outcome)
                if outcome.kind in ("traceback", "budget"):
                    print(f"{name} ({how}): {_described(outcome)}", flush=True)
            restarted = found is not None and found[0] == "unknown"
            worker.job = None
            if not restarted and time.monotonic() < end:
                worker.give((names[number % len(names)], number))
                number += 1
        for worker in workers:
            if worker.job and time.monotonic() - worker.started > _LONGEST_WAIT:
                worker.process.kill()
    for worker in workers:
        worker.end()
    return tallies


def _described(outcome: readers.Outcome) -> str:
    return (
        f"{outcome.kind}, {outcome.memory / cost.MIB:.0f} MiB, {outcome.seconds:.1f} s,"
        f" {ascii(outcome.text)[:500]}"
    )


def report(tallies: dict[str, Tally]) -> None:
    """Prints a table."""
    kinds = ("refused", "accepted", "traceback", "budget")
    print(f"| files | tried | {' | '.join(kinds)} | most MiB | most seconds |")
    print("|---" * 8 + "|")
    total = Tally()
    for name, tally in tallies.items():
        total.kinds += tally.kinds
        total.memory = max(total.memory, tally.memory)
        total.seconds = max(total.seconds, tally.seconds)
        _row(name, tally, kinds)
    _row("all", total, kinds)
    print(f"most memory: {total.memory[1]}; most time: {total.seconds[1]}")


def _row(name: str, tally: Tally, kinds: tuple[str, ...]) -> None:
    counts = " | ".join(str(tally.kinds[kind]) for kind in kinds)
    print(
        f"| {name} | {tally.kinds.total()} | {counts} |"
        f" {tally.memory[0] / cost.MIB:.0f} | {tally.seconds[0]:.1f} |"
    )


def again(seeds: pathlib.Path, folder: pathlib.Path, which: str) -> None:
    """Reads one file again and prints the traceback."""
    name, _, number = which.partition(":")
    print(readers.changed(name, seeds, folder, _rng(name, int(number))), folder)
    with cost.measured() as taken:
        try:
            readers.READERS[name].read(folder)
        except Exception:
            traceback.print_exc()
    print(f"{taken.memory / cost.MIB:.0f} MiB, {taken.seconds:.1f} s")


def main() -> int:
    """Runs the campaign."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", choices=readers.READERS)
    parser.add_argument("--again", metavar="NAME:NUMBER")
    given = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="jcm_fuzz_"))
    os.environ["JCM_CACHE"] = str(folder / "cache")
    # The processes are forked, and must not be forked from one in which JAX has begun.
    context = multiprocessing.get_context("spawn")
    maker = context.Process(target=_make, args=(folder,))
    maker.start()
    maker.join()
    if maker.exitcode:
        return 1
    if given.again:
        again(folder / "seeds", folder / "again", given.again)
        return 0
    tallies = campaign(folder / "seeds", folder, given)
    report(tallies)
    readers.mutations.remove(folder)
    bad = sum(t.kinds["traceback"] + t.kinds["budget"] for t in tallies.values())
    return 1 if bad else 0


def _make(folder: pathlib.Path) -> None:
    readers.seeds(folder / "seeds", make_sources(folder))


if __name__ == "__main__":
    sys.exit(main())
