"""Starts a program again with large pages of memory."""

import contextlib
import os
import platform
import sys

VARIABLE = "GLIBC_TUNABLES"
"""The environment variable that the C library of Linux reads at the start."""
_NAME = "glibc.malloc.hugetlb"
SETTING = f"{_NAME}=1"
"""What `restart` adds to the variable."""


def restart(*programs: str) -> None:
    """Starts the program again in the same process, with large pages of memory.

    XLA allocates the memory of a training step for each one. Linux then maps more than
    100,000 pages of 4 KiB, which is a tenth of the time of a step; with pages of
    2 MiB it is a hundredth. The C library reads the setting only at the start. Nothing
    happens on other systems, in a process that was started for something else, such as
    a notebook, or if the user has decided on large pages. Other settings in the
    variable stay.

    Args:
      *programs: names by which Python is told to run the program: that of a script, or,
        after `-m`, of a module.
    """
    known = os.environ.get(VARIABLE, "")
    named = (each for each in sys.orig_argv[1:] if not each.startswith("-"))
    if os.path.basename(next(named, "")) not in programs:
        return
    if platform.libc_ver()[0] != "glibc" or _NAME in known:
        return
    sys.stdout.flush()
    enlarged = os.environ | {VARIABLE: ":".join(filter(None, (known, SETTING)))}
    with contextlib.suppress(OSError):  # then the pages stay small
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], enlarged)
