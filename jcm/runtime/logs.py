"""What programs, `jcm.train` and `jcm.evaluate` show: the log of jcm, and warnings."""

import contextlib
import logging as std_logging
import pathlib
from collections.abc import Iterator

from absl import logging

from jcm.runtime.errors import escaped

_PACKAGE = pathlib.Path(__file__).parents[1]


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Shows the relevant lines of the log within a Python program.

    If the program has set up logging itself, its handlers get these lines.
    """
    logger, verbosity = logging.get_absl_logger(), logging.get_verbosity()
    propagates, handler = logger.propagate, None
    logging.set_verbosity(max(verbosity, logging.INFO))
    logger.addFilter(_is_relevant)
    if all(map(_is_default, std_logging.root.handlers)):
        handler = std_logging.StreamHandler()
        prepare(handler)
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logger.removeFilter(_is_relevant)
        if handler:
            logger.removeHandler(handler)
            logger.propagate = propagates


def _is_default(handler: std_logging.Handler) -> bool:
    """Returns whether a handler is the one that logging creates without settings."""
    return (
        type(handler) is std_logging.StreamHandler
        and getattr(handler.formatter, "_fmt", None) == std_logging.BASIC_FORMAT
    )


def prepare(handler: std_logging.Handler) -> None:
    """Makes a handler show the time of each line, and relevant lines only."""
    handler.addFilter(_is_relevant)
    handler.setFormatter(_Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))


class _Formatter(std_logging.Formatter):
    """Formats a line of the log, which may quote what a file contains."""

    def format(self, record: std_logging.LogRecord) -> str:
        """Returns the line without characters that control a terminal."""
        return escaped(super().format(record))


def _is_relevant(record: std_logging.LogRecord) -> bool:
    """Returns whether to show a log record: all of jcm, and warnings of libraries.

    Orbax and other libraries log every step they take.
    """
    ours = _PACKAGE in pathlib.Path(record.pathname).parents
    return ours or record.levelno >= std_logging.WARNING
