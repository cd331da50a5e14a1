"""How orbax reads and writes the arrays of checkpoints in several processes."""

from collections.abc import Iterable

import jax
import orbax.checkpoint as ocp

from jcm.run.leaks import stop_leaks

stop_leaks()

# The least part of a replicated array that a process writes for the others.
_PIECE_BYTES = 2**20


def alone() -> ocp.options.MultiprocessingOptions:
    """Returns options with which each process reads independently.

    None then waits forever for one that fails.
    """
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"reader{me}"
    )


def handlers(parts: Iterable[str]) -> ocp.DefaultCheckpointHandlerRegistry:
    """Returns the handlers that write the parts of a state, by their names.

    By default, unless $JAX_PLATFORMS names GPUs, orbax cuts every array into a piece
    for each device that holds it. Each piece needs a compiled program, which would
    stop the training for seconds.
    """
    arrays = ocp.type_handlers.ArrayHandler(
        # With several processes, orbax decides whether they share the writing.
        use_replica_parallel=None if jax.process_count() > 1 else False,
        min_slice_bytes_for_replica_parallel=_PIECE_BYTES,
    )
    types = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    registry = ocp.DefaultCheckpointHandlerRegistry()
    for name in parts:
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=types)
        registry.add(name, ocp.args.PyTreeSave, handler)
    return registry
