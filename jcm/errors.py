"""Errors that are the user's to mend."""


class JcmError(Exception):
    """One line that names the thing and the remedy; programs print it and end.

    Attributes:
      exit_code: of a program that ends by it.
    """

    exit_code = 1


class Preempted(JcmError):
    """The machine is taken away; what was done is saved, and waits to go on.

    Its exit code, EX_TEMPFAIL of sysexits.h, tells launchers to start again.
    """

    exit_code = 75
