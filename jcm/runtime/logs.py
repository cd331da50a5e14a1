"""What programs, `jcm.train` and `jcm.evaluate` show: the log of jcm, and warnings."""

import asyncio
import contextlib
import logging as std_logging
import pathlib
import sys
import threading
import traceback
import weakref
from collections.abc import Iterator
from typing import Any

from absl import logging

from jcm.runtime.errors import escaped

_PACKAGE = pathlib.Path(__file__).parents[1]
# The errors that have ended threads of libraries.
_errors: weakref.WeakKeyDictionary[threading.Thread, BaseException] = (
    weakref.WeakKeyDictionary()
)


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Shows the relevant lines of the log within a Python program.

    If the program has set up logging itself, its handlers get these lines.
    """
    logger, verbosity = logging.get_absl_logger(), logging.get_verbosity()
    levels = {each: each.level for each in (logger, std_logging.root)}
    propagates, handler = logger.propagate, None
    logging.set_verbosity(max(verbosity, logging.INFO))
    for each in (logger, std_logging.getLogger("asyncio")):
        each.addFilter(_is_relevant)
    if all(map(_is_default, std_logging.root.handlers)):
        handler = std_logging.StreamHandler()
        prepare(handler)
        logger.addHandler(handler)
        logger.propagate = False
    try:
        with tracebacks_hidden():
            yield
    finally:
        logging.set_verbosity(verbosity)
        # absl would give the logger a level of its own, which it need not have had.
        for each, level in levels.items():
            each.setLevel(level)
        for each in (logger, std_logging.getLogger("asyncio")):
            each.removeFilter(_is_relevant)
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

    Orbax and other libraries log every step they take. The errors of orbax are raised,
    too, and `jcm.run.checkpoints` explains them. asyncio logs those of the tasks that
    orbax abandons after the first error.
    """
    if _PACKAGE in pathlib.Path(record.pathname).parents:
        return True
    is_orbax = "orbax" in pathlib.Path(record.pathname).parts or _is_abandoned(record)
    return record.levelno >= std_logging.WARNING and not is_orbax


def _is_abandoned(record: std_logging.LogRecord) -> bool:
    """Returns whether a task of orbax, or a write of TensorStore, ended with an error.

    An error of TensorStore in C++ has no traceback, and names its kind of database.
    """
    if record.name != "asyncio" or not record.exc_info:
        return False
    _, error, trace = record.exc_info
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace)]
    if not files:
        return "OCDBT database" in str(error)
    return any("orbax" in pathlib.Path(file).parts for file in files)


@contextlib.contextmanager
def tracebacks_hidden() -> Iterator[None]:
    """Hides errors in the threads of libraries, which jcm reports in one line.

    If orbax cannot write an array, it abandons the tasks that write the others.
    TensorStore then prints a traceback for each of them. The thread that writes event
    files ends with its error, which `error_of` returns.
    """
    in_threads, ignored = threading.excepthook, sys.unraisablehook
    ours = _ThreadHook(in_threads), _UnraisableHook(ignored)
    threading.excepthook, sys.unraisablehook = ours
    try:
        yield
    finally:
        # The program may have set others meanwhile.
        if threading.excepthook is ours[0]:
            threading.excepthook = in_threads
        if sys.unraisablehook is ours[1]:
            sys.unraisablehook = ignored


def error_of(thread: threading.Thread) -> BaseException | None:
    """Returns the error that has ended a thread of a library, if it is known."""
    return _errors.get(thread)


class _ThreadHook:
    """Keeps the errors of the threads that write event files."""

    def __init__(self, before: Any):
        """Takes the hook for all other threads."""
        self._before = before

    def __call__(self, found: threading.ExceptHookArgs) -> None:
        """Keeps an error, or passes it on."""
        module = type(found.thread).__module__.partition(".")[0]
        if module == "tensorboardX" and found.thread and found.exc_value:
            _errors[found.thread] = found.exc_value
        else:
            self._before(found)


class _UnraisableHook:
    """Hides that TensorStore has finished what a task does not wait for any more."""

    def __init__(self, before: Any):
        """Takes the hook for all other errors."""
        self._before = before

    def __call__(self, found: Any) -> None:
        """Hides an error, or passes it on."""
        if not _is_of_tensorstore(found):
            self._before(found)


def _is_of_tensorstore(found: Any) -> bool:
    """Returns whether TensorStore has informed a loop of asyncio that is closed.

    It calls the loop from C++, so that no other function is in the traceback, and it
    names no object.
    """
    first = found.exc_traceback and found.exc_traceback.tb_frame.f_code
    return (
        str(found.exc_value) == "Event loop is closed"
        and found.object is None
        and first is asyncio.BaseEventLoop.call_soon_threadsafe.__code__
    )
