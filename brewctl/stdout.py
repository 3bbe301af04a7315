"""The one way to stdout, which people and other programs read as it comes; stdin and stderr are made usable with it."""

import io
import os
import sys
from typing import TextIO

from brewctl.errors import BrewError

# For a `brewctl` process whose output is read by us: our reader knows no other encoding.
ENVIRONMENT = {"PYTHONIOENCODING": "utf-8"}


def prepare() -> None:
    """Make all three usable, however the shell left them. To be called before anything is opened.

    A closed one (`>&-`, and as some services are started) goes nowhere: else the next file or socket would take its
    number, and get what is printed. What stdout's encoding lacks is printed as `?`.
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
    """Print a line at once. False where the reader has gone (`| head -1`): from then on it goes nowhere.

    Raises BrewError where it can't be written, as to a disk that is full.
    """
    try:
        # One write: threads that print at the same time don't mix their lines.
        print(f"{line}\n", end="", flush=True)
    except OSError as error:
        let_go(sys.stdout)
        if isinstance(error, BrokenPipeError):
            return False
        raise BrewError(f"stdout can't be written ({(error.strerror or str(error)).lower()})") from error
    return True


def let_go(stream: TextIO) -> None:
    """Send what is still printed there nowhere: nothing may be flushed there at exit either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
