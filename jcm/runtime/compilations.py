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
      names: of the compiled functions, in order.
    """

    def __init__(self) -> None:
        """Counts from 0."""
        self.names: list[str] = []

    @property
    def count(self) -> int:
        """The number of programs so far."""
        return len(self.names)

    def __enter__(self) -> Self:
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *error: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **about: Any) -> None:
        if event == _EVENT:
            self.names.append(str(about.get("fun_name", "")))
