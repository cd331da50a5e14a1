"""The one exception that the command line turns into one line and exit code 1."""


class JcmError(Exception):
    """A mistake the user can mend: the message names the thing and the remedy."""
