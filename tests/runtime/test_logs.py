"""Tests of what a Python program sees of the log and of errors in threads."""

import asyncio
import gc
import logging as std_logging
import sys
import threading

import tensorstore
from absl import logging

from jcm.runtime import logs


def test_nothing_of_the_program_stays_changed():
    logger, root = logging.get_absl_logger(), std_logging.root
    loggers = (logger, root, std_logging.getLogger("asyncio"))

    def state():
        return (
            *(threading.excepthook, sys.unraisablehook, logging.get_verbosity()),
            *((each.level, each.handlers[:], each.filters[:]) for each in loggers),
            logger.propagate,
        )

    before, level = state(), logger.level
    try:
        logger.setLevel("NOTSET")  # as in a program that has set up nothing
        before = state()
        with logs.shown(), logs.shown():
            assert logger.isEnabledFor(std_logging.INFO)
            assert threading.excepthook is not before[0]
        assert state() == before
    finally:
        logger.setLevel(level)


def test_hooks_that_the_program_sets_meanwhile_stay(monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    with logs.tracebacks_hidden():
        threading.excepthook = print
    assert threading.excepthook is print


def test_only_errors_of_tensorstore_are_hidden(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    done, future = tensorstore.Promise.new()

    async def wait():
        await future

    async def start():
        task = asyncio.ensure_future(wait())
        task._log_destroy_pending = False
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(start())
    loop.close()

    class Broken:
        def __del__(self):
            loop.call_soon_threadsafe(print)

    with logs.tracebacks_hidden():
        done.set_result(1)
        future.result()
        assert not seen
        Broken()
    assert [str(each.exc_value) for each in seen] == ["Event loop is closed"]


def test_abandoned_tasks_of_orbax_are_hidden(caplog):
    """Orbax writes arrays in tasks, and the first error abandons the others."""

    def abandon(start):
        async def start_and_drop():
            made = start()
            await asyncio.sleep(0)
            del made

        asyncio.run(start_and_drop())
        gc.collect()
        return [record.name for record in caplog.records]

    def task_in(file):
        names = {}
        source = "async def write(): raise ValueError('no space')"
        exec(compile(source, file, "exec"), names)
        return asyncio.ensure_future(names["write"]())

    def future(message):
        made = asyncio.get_running_loop().create_future()
        made.set_exception(ValueError(message))
        return made

    with logs.shown():
        assert not abandon(lambda: task_in("/env/orbax/checkpoint/serialization.py"))
        assert not abandon(lambda: future('Error writing "a" in OCDBT database'))
        assert abandon(lambda: task_in("/env/other/serialization.py")) == ["asyncio"]
        assert abandon(lambda: future("no space")) == ["asyncio", "asyncio"]
