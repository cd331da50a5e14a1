"""Several processes as one program."""

import jax
from absl import flags, logging

from jcm.errors import JcmError

_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, for a run of several processes."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.")
_PROCESS = flags.DEFINE_integer("process", None, "Number of this process, from 0.")


def initialize() -> None:
    """Joins the other processes where flags say that there are any.

    Raises:
      JcmError: for flags that do not go together, or where joining fails.
    """
    given = (_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    if given == (None, None, None):
        return
    if None in given:
        raise JcmError("--coordinator, --processes and --process go together")
    try:
        jax.distributed.initialize(*given)
    except (RuntimeError, ValueError) as error:
        raise JcmError(f"cannot join the processes at {given[0]}: {error}") from error
    logging.info("process %d of %d", jax.process_index(), jax.process_count())
