"""Messages that quote what a file of a stranger contains."""

import logging

import pytest

from jcm.runtime import logs
from jcm.runtime.errors import JcmError, Preempted, escaped, one_line, shown

_HOSTILE = "name\x1b[2J\x07\u202eeman\r\n\x9b1m\ud800\u2028end"
_SAFE = "name\\x1b[2J\\x07\\u202eeman \\x9b1m\\ud800 end"


@pytest.mark.parametrize("kind", [JcmError, Preempted])
def test_a_message_is_one_printable_line(kind):
    assert str(kind(_HOSTILE)) == _SAFE
    assert str(kind("Grüße, 猫, 👩\u200d🚀")) == "Grüße, 猫, 👩\u200d🚀"


def test_a_long_message_keeps_its_beginning_and_its_remedy():
    message = str(JcmError(f"key {'x' * 5_000_000} is unknown: name another file"))
    assert len(message) <= 2000
    assert message.startswith("key xxx")
    assert message.endswith("xxx is unknown: name another file")


def test_quoted_errors_and_values_are_printable():
    assert one_line(ValueError(_HOSTILE)) == _SAFE
    assert one_line(KeyError("x" * 99), 20) == "xxxxxxxxx ... xxxxxx"
    assert shown("\x1b" + "y" * 99) == "'\\x1b" + "y" * 55 + "..."


def test_a_line_of_the_log_is_printable():
    handler = logging.StreamHandler()
    logs.prepare(handler)
    record = logging.LogRecord("", 20, logs.__file__, 1, _HOSTILE, (), None)
    assert handler.format(record).endswith(escaped(_HOSTILE))
    assert "\x1b" not in handler.format(record)
