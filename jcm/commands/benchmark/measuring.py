"""What the benchmark programs share: timing, and numbers printed as JSON."""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Calls a function; returns its result and the seconds until it is computed."""
    started = time.perf_counter()
    result = jax.block_until_ready(function())
    return result, time.perf_counter() - started


def median_seconds(function: Callable[[], Any], repeats: int) -> float:
    """Returns the median time of several calls, after one that compiles."""
    times = [timed(function)[1] for _ in range(repeats + 1)]
    return statistics.median(times[1:])


def print_json(numbers: dict[str, Any]) -> None:
    """Prints the numbers that a program has measured."""
    print(json.dumps(numbers, indent=2))
