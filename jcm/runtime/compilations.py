"""Counts the programs that JAX compiles."""

from typing import Any, Self

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"


class Compilations:
    """Counts the programs that are compiled, or read from the cache, in a block.

        with Compilations() as compiled:
            model.sample(3)
        print(compiled.count)

    Attributes:
      count: the number of programs so far.
    """

    def __init__(self) -> None:
        """Counts from 0."""
        self.count = 0

    def __enter__(self) -> Self:
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *error: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        self.count += event == _EVENT
