"""The exceptions that end a program, and what to write in their messages."""

import difflib
from collections.abc import Iterable
from typing import Any

# An error shows at most this many characters of a wrong value, and has at most so many.
_LONGEST_VALUE = 60
_LONGEST_MESSAGE = 2000
# They join letters and emoji in words of many languages, and are harmless.
_JOINERS = "\u200c\u200d"


class JcmError(Exception):
    """An error that the user can fix: one line that names the cause and the remedy.

    The message may quote what a file contains, see `printable`.

    Attributes:
      exit_code: of a program that this error ends.
    """

    exit_code = 1

    def __init__(self, message: object):
        """Takes the line, or another error that has it."""
        super().__init__(printable(str(message), _LONGEST_MESSAGE))


class Preempted(BaseException):
    """The program was asked to stop, after it saved what it has done.

    It is not an Exception, so that code that handles errors does not catch it; the
    same holds for KeyboardInterrupt.

    Attributes:
      exit_code: EX_TEMPFAIL of sysexits.h; launchers then start the program again.
      by_all: whether all processes of the run have agreed to end now. If not, the
        others do not know about it.
    """

    exit_code = 75

    def __init__(self, message: str, *, by_all: bool = False):
        """Takes one line that says from which step the next start resumes."""
        super().__init__(printable(message, _LONGEST_MESSAGE))
        self.by_all = by_all


def one_line(error: BaseException, longest: int | None = None) -> str:
    """Returns the message of an error on one line, to be quoted in another message.

    Args:
      error: any exception. Without a message, the result is the name of its type.
      longest: the number of characters to keep; None keeps all.
    """
    # str() of a KeyError is the repr of its message, and ml_collections makes an
    # AttributeError from a KeyError.
    message = error
    while isinstance(message, KeyError | AttributeError) and message.args:
        message = message.args[0]
    return printable(str(message), longest) or type(error).__name__


def shown(value: Any) -> str:
    """Returns the repr of a wrong value on one line, shortened if it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        text = f"a huge {type(value).__name__}"
    return f"{printable(text[:_LONGEST_VALUE])}{'...' * (len(text) > _LONGEST_VALUE)}"


def printable(text: str, longest: int | None = None) -> str:
    """Returns a text on one line, without characters that control a terminal.

    Args:
      text: any text, such as one from the file of a stranger.
      longest: the number of characters to keep, from the beginning and the end; None
        keeps all.
    """
    if longest is not None and len(text) > 2 * longest:  # a file may hold megabytes
        text = f"{text[:longest]} ... {text[-longest:]}"
    text = escaped(" ".join(text.split()))
    if longest is not None and len(text) > longest:
        end = longest // 3
        text = f"{text[: longest - end - 5]} ... {text[-end:]}"
    return text


def escaped(text: str) -> str:
    """Returns a text with escapes for all that is not printed, except for new lines.

    These are control characters, those that change the direction of a text, and halves
    of characters, which cannot be encoded.
    """
    if text.isprintable():
        return text
    return "".join(
        each
        if each.isprintable() or each in f"\n{_JOINERS}"
        else each.encode("unicode_escape").decode()
        for each in text
    )


def nearest(name: str, known: Iterable[str], least: float = 0.6) -> str | None:
    """Returns the known name that is nearest to a wrong one; None if none is near.

    Args:
      name: the wrong name.
      known: the names that exist.
      least: how similar they must be, from 0 to 1.
    """
    return next(iter(difflib.get_close_matches(name, list(known), 1, least)), None)


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Returns the end of a message about a name that does not exist.

    Args:
      name: the wrong name.
      known: the names that exist.
      otherwise: the end of the message if none of them is near.
    """
    found = nearest(name, known)
    return f": did you mean {found}?" if found else otherwise
