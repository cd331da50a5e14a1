"""What the benchmark programs share: timing, and numbers printed as JSON."""

import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import logging

from jcm.commands.benchmark import machine

# Above this spread, or this share of the cores that other processes use, figures are
# reported as scattered.
_STEADY = 0.1
# Calls after which caches and the memory that is kept are as they stay.
_WARM_UP = 4


@dataclasses.dataclass(frozen=True)
class Timing:
    """Times of several calls.

    Attributes:
      seconds: of each call.
      user: seconds of all cores in the program, in each call.
      system: seconds of all cores in the kernel for this process, in each call.
      threads: the number of threads that worked in at least one call; None if the
        system does not tell.
      others: the share of this process's cores that other processes used; None if the
        system does not tell, or the time was too short.
    """

    seconds: tuple[float, ...]
    user: tuple[float, ...]
    system: tuple[float, ...]
    threads: int | None = None
    others: float | None = None

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Slowest minus fastest call, as a share of the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median

    @property
    def cores_in_use(self) -> float:
        """CPU seconds for each second that passed."""
        return (sum(self.user) + sum(self.system)) / sum(self.seconds)

    def scattered(self) -> str:
        """Returns why the times are not to be trusted, or "" if they are steady."""
        reasons = []
        if self.spread > _STEADY:
            reasons.append(f"the slowest call took {self.spread:.0%} longer")
        if self.others is not None and self.others > _STEADY:
            reasons.append(f"other processes used {self.others:.0%} of the cores")
        return " and ".join(reasons)

    def numbers(self) -> dict[str, Any]:
        """Returns all numbers by name, for the JSON that a program prints."""
        return {
            "seconds": self.median,
            "seconds_each": self.seconds,
            "spread": self.spread,
            "user_cpu_seconds": statistics.median(self.user),
            "system_cpu_seconds": statistics.median(self.system),
            "cores_in_use": self.cores_in_use,
            "threads_in_use": self.threads,
            "others_share_of_cores": self.others,
            "scattered": self.scattered(),
        }


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Calls a function; returns its result and the seconds until it is computed."""
    started = time.perf_counter()
    result = jax.block_until_ready(function())
    return result, time.perf_counter() - started


def measured(what: str, function: Callable[[], Any], repeats: int) -> Timing:
    """Times several calls one by one, after one that compiles and some to warm up.

    Args:
      what: what a call does, for the warning that times scatter.
      function: what is timed.
      repeats: number of calls, at least 1.
    """
    for _ in range(1 + _WARM_UP):
        timed(function)
    seconds, user, system = [], [], []
    before = machine.Use.now()
    for _ in range(repeats):
        first = machine.cpu_seconds()
        seconds.append(timed(function)[1])
        last = machine.cpu_seconds()
        user.append(last[0] - first[0])
        system.append(last[1] - first[1])
    use = machine.Use.now()
    found = Timing(
        seconds=tuple(seconds),
        user=tuple(user),
        system=tuple(system),
        threads=use.threads_since(before),
        others=use.others_since(before),
    )
    if reason := found.scattered():
        logging.warning(
            "the figures of %s scatter: %s; measure on an idle machine", what, reason
        )
    return found


@contextlib.contextmanager
def watched(what: str) -> Iterator[dict[str, Any]]:
    """Warns if other processes have used the cores while something was measured.

    Args:
      what: what is measured, for the warning.

    Yields:
      A dict that has the share of the cores that others have used at the end.
    """
    before = machine.Use.now()
    found: dict[str, Any] = {}
    yield found
    others = machine.Use.now().others_since(before)
    found["others_share_of_cores"] = others
    if others is not None and others > _STEADY:
        logging.warning(
            "the figures of %s scatter: other processes used %.0f%% of the cores;"
            " measure on an idle machine",
            *(what, 100 * others),
        )


def print_json(numbers: dict[str, Any]) -> None:
    """Prints the numbers that a program has measured."""
    print(json.dumps(numbers, indent=2))
