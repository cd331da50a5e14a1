"""Sends signals to small runs at random moments and compares what the runs leave.

python tests/campaigns/signals.py --signals=100 [--seed=0] [--only=ct,two] [--trial=N]
    [--seconds=3600] [--folder=DIR] [--kind=SIGKILL] [--event=EVENT]

Every scenario runs once without a signal. Then it runs again and again, each time with
one to three signals: SIGKILL, SIGTERM, SIGINT, SIGTERM with SIGKILL soon after it, and
SIGSTOP with SIGCONT soon after it. Half of the moments are events of files, such as a
new folder of a checkpoint, and the others are random. The same command is started until
it ends. All that it leaves must then equal what the first run left, to the bit:
checkpoints, numbers, scores, pictures, samples and prepared data. Nothing else may be
left: temporary files, processes. The exit code must be 75 after SIGTERM or SIGINT.

--trial repeats a single trial, and --kind and --event send a given signal at the first
occurrence of a given event, such as "create run/samples". The folder of a trial that
differs is kept. The exit code is 0 if all are equal.
"""

import argparse
import atexit
import collections
import dataclasses
import itertools
import json
import pathlib
import random
import shutil
import signal
import sys
import time
import traceback

from comparing import differences, outcome
from programs import Place, Program, handles, send
from scenarios import SCENARIOS, Scenario, write_pictures
from watching import Watch

from jcm.runtime import lost

KINDS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGTERM SIGKILL", "SIGSTOP SIGCONT")
_MOST_SIGNALS = 3  # of a trial
_PREEMPTED = 75


@dataclasses.dataclass(frozen=True)
class Moment:
    """When a signal is sent: after an event, or seconds after the start.

    Attributes:
      event: from `Watch`; empty for none.
      count: which occurrence of the event.
      delay: seconds after the event or after the start.
    """

    event: str
    count: int
    delay: float

    def __str__(self) -> str:
        after = f"{self.event} ({self.count})" if self.event else "start"
        return f"{self.delay:.3f} s after {after}"


@dataclasses.dataclass(frozen=True)
class Reference:
    """A run without signals.

    Attributes:
      folder: what it has left.
      outcome: the same as values.
      events: how often each event occurred.
      seconds: how long it took.
    """

    folder: pathlib.Path
    outcome: dict
    events: collections.Counter
    seconds: float


class Campaign:
    """The references of the scenarios, and the trials."""

    def __init__(
        self,
        folder: pathlib.Path,
        seed: int,
        deadline: float,
        kind: str = "",
        event: str = "",
    ):
        self._folder, self._seed, self._deadline = folder, seed, deadline
        self._kind, self._event = kind, event
        self._running: Program | None = None
        self._references: dict[str, Reference] = {}
        self._pictures = folder / "pictures"
        write_pictures(self._pictures)
        # The numbers of signals that were sent, by scenario and kind.
        self.sent: collections.Counter = collections.Counter()
        self.trials: collections.Counter = collections.Counter()
        self.faults: list[str] = []

    @property
    def ended(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self._deadline

    def close(self) -> None:
        """Kills what still runs."""
        if self._running:
            self._running.kill()

    def reference(self, name: str) -> Reference:
        """Returns the run of a scenario without signals, which is made once.

        It is made twice, of which the second must equal the first and finds what the
        first has compiled.
        """
        if name in self._references:
            return self._references[name]
        kept = self._folder / f"{name}_reference"
        about = kept.with_suffix(".json")
        if about.exists():
            found = json.loads(about.read_text())
            events, seconds = collections.Counter(found["events"]), found["seconds"]
        else:
            outcomes = []
            for _ in range(2):
                place = self._place(SCENARIOS[name])
                events, seconds = self._undisturbed(name, place)
                outcomes.append(outcome(place.folder))
            place.folder.rename(kept)
            if odd := differences(*outcomes):
                raise RuntimeError(f"{name}: two runs without signals differ: {odd}")
            about.write_text(json.dumps({"events": events, "seconds": seconds}))
        made = Reference(kept, outcome(kept), events, seconds)
        self._references[name] = made
        return made

    def _undisturbed(
        self, name: str, place: Place
    ) -> tuple[collections.Counter, float]:
        """Runs a scenario without signals; returns the events and the seconds."""
        program, events = self._start(SCENARIOS[name], place), collections.Counter()
        with Watch(place.folder) as watch:
            while program.runs:
                events.update(watch.wait(0.1))
        seconds = time.monotonic() - program.started
        codes = program.finish()
        if any(codes):
            said = program.said
            raise RuntimeError(f"{name} ends with {codes} without a signal: {said}")
        faults = [*self._traces(program), *_litter(place)]
        self._report(name, "no signal", faults, f"{seconds:.0f} s")
        return events, seconds

    def trial(self, name: str, number: int) -> None:
        """Runs a scenario with signals and compares what it leaves."""
        rng = random.Random(f"{self._seed} {name} {number}")
        scenario, reference = SCENARIOS[name], self.reference(name)
        place, faults, done = self._place(scenario), [], []
        wanted, ended = rng.randint(1, _MOST_SIGNALS), False
        for attempt in range(1 if self._event else wanted):
            kind = self._kind or rng.choice(KINDS)
            moment = _moment(rng, reference, attempt)
            if self._event:
                moment = Moment(self._event, 1, 0.0)
            which = rng.choice([(0,), (1,), (0, 1)]) if scenario.processes > 1 else (0,)
            program = self._start(scenario, place)
            text, was_sent = self._disturb(program, place, kind, moment, which, rng)
            codes = program.finish()
            faults += self._traces(program)
            if was_sent:
                self.sent[name, kind] += 1
                faults += wrong_codes(codes, kind, text, scenario.processes)
                done.append(f"{kind}{text} {moment} -> {codes}")
            ended = not any(codes)
            if ended:
                break
        if not ended:
            program = self._start(scenario, place)
            codes = program.finish()
            faults += self._traces(program)
            if any(codes):
                faults.append(f"the last start ends with {codes}: {program.said}")
        faults += differences(outcome(place.folder), reference.outcome)
        faults += _litter(place)
        self.trials[name, not faults] += 1
        self._report(name, number, faults, "; ".join(done))
        if faults:
            kept = self._folder / f"{name}_{number}"
            shutil.rmtree(kept, ignore_errors=True)
            place.folder.rename(kept)
            place.log.rename(kept.with_name(f"{kept.name}.log"))

    def _place(self, scenario: Scenario) -> Place:
        """Returns a new place, always with the same path, which some files record."""
        folder = self._folder / "now"
        shutil.rmtree(folder, ignore_errors=True)
        if scenario.after:
            source = self.reference(scenario.after).folder
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(source, folder)
        place = Place(folder, self._folder / "compiled")
        place.log.unlink(missing_ok=True)
        return place

    def _start(self, scenario: Scenario, place: Place) -> Program:
        self._running = Program(
            place,
            scenario.arguments(place.workdir, self._pictures),
            processes=scenario.processes,
            environment=scenario.environment,
        )
        return self._running

    def _disturb(
        self,
        program: Program,
        place: Place,
        kind: str,
        moment: Moment,
        which: tuple[int, ...],
        rng: random.Random,
    ) -> tuple[str, bool]:
        """Sends signals; returns what is known of them, and whether any was sent."""
        if not _wait(program, place, moment):
            return "", False
        first, *then = [signal.Signals[name] for name in kind.split()]
        targets = [program.processes[i] for i in which]
        # A program that has not set its handlers yet ends as any other.
        early = not all(handles(each, signal.SIGTERM) for each in targets)
        sent = [send(each, first) for each in targets]
        for number in then:
            time.sleep(rng.uniform(0, 2))
            for each in targets:
                send(each, number)
        several = f" to {which}" if len(program.processes) > 1 else ""
        return several + (" (early)" if early else ""), any(sent)

    def _traces(self, program: Program) -> list[str]:
        """Returns signs in the output and among the processes that something is odd."""
        lines = program.said.splitlines()
        found = [line for line in lines if "Traceback" in line or "Warning:" in line]
        left = [f"a process is left: {each}" for each in program.left()]
        return [f"printed: {line}" for line in found[:3]] + left

    def _report(self, name: str, number: object, faults: list[str], text: str) -> None:
        verdict = "equal" if not faults else "DIFFERENT"
        print(f"{name} {number}: {verdict}; {text}", flush=True)
        for fault in faults:
            print(f"    {fault}", flush=True)
            self.faults.append(f"{name} {number}: {fault}")


def _moment(rng: random.Random, reference: Reference, attempt: int) -> Moment:
    """Returns a random moment of a run."""
    if rng.random() < 0.5:
        return Moment("", 0, rng.uniform(0, reference.seconds))
    # Rare events are as probable as frequent ones.
    places = sorted({_group(event) for event in reference.events})
    group = rng.choice(places)
    event = rng.choice(sorted(e for e in reference.events if _group(e) == group))
    # After the first signal, fewer are left.
    most = reference.events[event] if attempt == 0 else 1
    delay = rng.choice((0.0, rng.uniform(0, 0.005), rng.uniform(0, 0.1)))
    return Moment(event, rng.randint(1, most), delay)


def _group(event: str) -> str:
    """Returns the folder of an event, of which the small files of a run are one."""
    path = event.rpartition(" ")[2].split("/")
    return "/".join(path[:2]) if len(path) > 2 else path[0]


def _wait(program: Program, place: Place, moment: Moment) -> bool:
    """Waits for a moment; returns whether the program still runs then."""
    if not moment.event:
        left = program.started + moment.delay - time.monotonic()
        deadline = time.monotonic() + max(left, 0)
        program.until(lambda: time.monotonic() >= deadline)
        return program.runs
    seen = 0
    with Watch(place.folder) as watch:
        while program.runs and seen < moment.count:
            seen += watch.wait(0.1).count(moment.event)
    time.sleep(moment.delay)
    return program.runs


def wrong_codes(codes: list[int], kind: str, text: str, processes: int) -> list[str]:
    """Returns what is wrong with the exit codes after a signal."""
    numbers = {-signal.Signals[name] for name in kind.split()}
    if kind == "SIGSTOP SIGCONT":
        allowed = {0}
    elif kind == "SIGKILL":
        # JAX aborts the other process, which is explained on Linux, or it ends with an
        # error of one line.
        others = {lost.EXIT_CODE, -signal.SIGABRT, 1} if processes > 1 else set()
        allowed = {0, -signal.SIGKILL} | others
    elif "early" in text:
        # SIGINT during an import ends Python with KeyboardInterrupt.
        allowed = {0, 1, 130, _PREEMPTED, -signal.SIGABRT} | numbers
    else:
        killed = {-signal.SIGKILL, lost.EXIT_CODE, -signal.SIGABRT, 1}
        allowed = {0, _PREEMPTED} | (killed if "KILL" in kind else set())
    wrong = [code for code in codes if code not in allowed]
    return [f"exit codes {codes} after {kind}{text}"] if wrong else []


def _litter(place: Place) -> list[str]:
    """Returns temporary files that are left."""
    return [f"left in TMPDIR: {path.name}" for path in place.temporary.iterdir()]


def _table(campaign: Campaign, names: list[str]) -> str:
    """Returns the number of signals of each kind, and of trials that were equal."""
    lines = [f"| scenario | {' | '.join(KINDS)} | equal |", "|---" * 7 + "|"]
    for name in names:
        counts = " | ".join(str(campaign.sent[name, kind]) for kind in KINDS)
        good, bad = (campaign.trials[name, verdict] for verdict in (True, False))
        lines.append(f"| {name} | {counts} | {good} of {good + bad} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the campaign."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--signals", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(SCENARIOS))
    parser.add_argument("--trial", type=int)
    parser.add_argument("--kind", choices=KINDS, default="")
    parser.add_argument("--event", default="")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--folder", type=pathlib.Path, default="/tmp/jcm_signals")
    options = parser.parse_args()
    names, deadline = options.only.split(","), time.monotonic() + options.seconds
    if unknown := set(names) - SCENARIOS.keys():
        parser.error(f"unknown scenario {unknown}: use some of {', '.join(SCENARIOS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    campaign = Campaign(
        options.folder, options.seed, deadline, options.kind, options.event
    )
    atexit.register(campaign.close)
    if options.trial is not None:
        for name in names:
            campaign.trial(name, options.trial)
    else:
        for turn in itertools.count():
            number, place = divmod(turn, len(names))
            if campaign.sent.total() >= options.signals or campaign.ended:
                break
            try:
                campaign.trial(names[place], number)
            except Exception:
                campaign.faults.append(
                    f"{names[place]} {number}: {traceback.format_exc()}"
                )
    total, faults = campaign.sent.total(), len(campaign.faults)
    print(f"\n{_table(campaign, names)}\n\n{total} signals, {faults} differences")
    print("\n".join(campaign.faults))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
