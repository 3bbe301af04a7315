"""The one way to stdout, which people and other programs read as it comes."""

import os
import sys


def put(line: str) -> bool:
    """Print a line at once. False where the reader has gone (`| head -1`): from then on it goes nowhere."""
    try:
        # One write: threads that print at the same time don't mix their lines.
        print(f"{line}\n", end="", flush=True)
    except BrokenPipeError:
        # Nothing may be flushed into the pipe at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True
