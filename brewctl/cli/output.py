"""What commands print: results on stdout, nothing else there."""

import json
import os
import sys

import typer

verbose = False  # set by `brewctl -v`: debug logs, and tracebacks of errors


def emit(text: str) -> None:
    """Print a result at once. Ends the command quietly where the reader has gone (`| head -1`)."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Nothing may be flushed into the pipe at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit from None


def emit_json(value: object) -> None:
    """Print a result as one line of JSON."""
    emit(json.dumps(value))
