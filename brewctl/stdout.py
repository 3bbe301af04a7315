"""Writes lines to stdout at once, and makes stdin, stdout and stderr usable at the start."""

import io
import os
import sys
from typing import TextIO

from brewctl.errors import BrewError

# For a `brewctl` process whose output brewctl itself reads, which it does as UTF-8.
ENVIRONMENT = {"PYTHONIOENCODING": "utf-8"}


def prepare() -> None:
    """Make stdin, stdout and stderr usable. Call it before any file or socket is opened.

    A closed stream (`>&-`, or by a service manager) is opened on /dev/null. Otherwise the next file or socket would get
    its number, and the output with it. Characters that stdout's encoding lacks are printed as `?`.
    """
    _open_closed()
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for as long as we run
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _open_closed() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            os.set_inheritable(number, True)


def put(line: str) -> bool:
    """Print a line at once. False if stdout's reader has closed it (`| head -1`): later lines are dropped.

    Raises BrewError if the line can't be written, for example to a full disk.
    """
    try:
        # One write, so that lines of different threads don't mix.
        print(f"{line}\n", end="", flush=True)
    except OSError as error:
        let_go(sys.stdout)
        if isinstance(error, BrokenPipeError):
            return False
        raise BrewError(f"stdout can't be written ({(error.strerror or str(error)).lower()})") from error
    return True


def let_go(stream: TextIO) -> None:
    """Redirect a broken stream to /dev/null, so that neither later lines nor the flush at exit fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
