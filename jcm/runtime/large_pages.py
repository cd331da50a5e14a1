"""Starts a program again with large pages of memory."""

import os
import platform
import sys

VARIABLE = "GLIBC_TUNABLES"
"""The environment variable that the C library of Linux reads at the start."""
_SETTING = "glibc.malloc.hugetlb"


def restart(*programs: str) -> None:
    """Starts the program again in the same process, with large pages of memory.

    XLA allocates the memory of a training step anew for each one. Linux then maps more
    than 100,000 pages of 4 KiB, which is a tenth of the time of a step; with pages of
    2 MiB it is a hundredth. The C library reads the setting only at the start. Nothing
    happens on other systems, in a process that was started for something else, such as
    a notebook, or if the user has set the variable.

    Args:
      *programs: names by which Python is told to run the program: that of a script, or,
        after `-m`, of a module.
    """
    known = os.environ.get(VARIABLE, "")
    named = (each for each in sys.orig_argv[1:] if not each.startswith("-"))
    if os.path.basename(next(named, "")) not in programs:
        return
    if platform.libc_ver()[0] != "glibc" or _SETTING in known:
        return
    os.environ[VARIABLE] = ":".join(filter(None, (known, f"{_SETTING}=1")))
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
