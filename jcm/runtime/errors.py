"""How programs end before they are done."""


class JcmError(Exception):
    """A mistake the user can mend: one line that names the thing and the remedy.

    Attributes:
      exit_code: of a program that ends by it.
    """

    exit_code = 1


class Preempted(BaseException):
    """The machine is taken away; what was done is saved, and waits to go on.

    No error: what handles errors must let it through, as a KeyboardInterrupt.

    Attributes:
      exit_code: EX_TEMPFAIL of sysexits.h, which tells launchers to start again.
      by_all: whether all processes of the run have agreed to leave now; else the
        others know of nothing.
    """

    exit_code = 75

    def __init__(self, message: str, *, by_all: bool = False):
        """One line that says from where the next start goes on."""
        super().__init__(message)
        self.by_all = by_all


def one_line(error: BaseException, longest: int | None = None) -> str:
    """The message of an error on one line, to quote in an error of ours.

    Args:
      error: of any kind; one without a message gives the name of its type.
      longest: characters to keep; None keeps all.
    """
    # A KeyError shows the repr of its message, with line breaks as two characters.
    text = str(error).replace("\\n", " ")
    return " ".join(text.split())[:longest] or type(error).__name__
