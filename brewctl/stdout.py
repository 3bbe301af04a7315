"""The one way to stdout, which people and other programs read as it comes."""

import os
import sys

from brewctl.errors import BrewError


def put(line: str) -> bool:
    """Print a line at once. False where the reader has gone (`| head -1`): from then on it goes nowhere.

    Raises BrewError where it can't be written, as to a disk that is full.
    """
    try:
        # One write: threads that print at the same time don't mix their lines.
        print(f"{line}\n", end="", flush=True)
    except OSError as error:
        # Nothing may be flushed there at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return False
        raise BrewError(f"stdout can't be written ({(error.strerror or str(error)).lower()})") from error
    return True
