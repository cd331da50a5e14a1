"""The exceptions that end a program, and what to write in their messages."""

import difflib
from collections.abc import Iterable
from typing import Any

# An error shows at most this many characters of a wrong value.
_LONGEST = 60


class JcmError(Exception):
    """An error that the user can fix: one line that names the cause and the remedy.

    Attributes:
      exit_code: of a program that this error ends.
    """

    exit_code = 1


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
        super().__init__(message)
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
    return " ".join(str(message).split())[:longest] or type(error).__name__


def shown(value: Any) -> str:
    """Returns the repr of a wrong value on one line, shortened if it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


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
