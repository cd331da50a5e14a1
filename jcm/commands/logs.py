"""What programs, `jcm.train` and `jcm.evaluate` show: the log of jcm, and warnings."""

import contextlib
import logging as std_logging
import pathlib
from collections.abc import Iterator

from absl import logging

_PACKAGE = pathlib.Path(__file__).parents[1]


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Shows the log within a Python program, unless the program has set it up itself.

    If the program has a handler of log lines, it gets those of jcm.
    """
    before = logging.get_verbosity()
    logging.set_verbosity(max(before, logging.INFO))
    handler, root = std_logging.StreamHandler(), std_logging.root
    prepare(handler)
    if not root.handlers:
        root.addHandler(handler)
    try:
        yield
    finally:
        logging.set_verbosity(before)
        root.removeHandler(handler)


def prepare(handler: std_logging.Handler) -> None:
    """Makes a handler show the time of each line, and relevant lines only."""
    handler.addFilter(_is_relevant)
    handler.setFormatter(std_logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))


def _is_relevant(record: std_logging.LogRecord) -> bool:
    """Returns whether to show a log record: all of jcm, and warnings of libraries.

    Orbax and other libraries log every step they take.
    """
    ours = _PACKAGE in pathlib.Path(record.pathname).parents
    return ours or record.levelno >= std_logging.WARNING
