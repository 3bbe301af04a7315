"""What commands print: results on stdout, nothing else there."""

import json
import sys

import typer

from brewctl import stdout

verbose = False  # set by `brewctl -v`: debug logs, and tracebacks of errors


def emit(text: str) -> None:
    """Print a result at once. Ends the command quietly where the reader has gone (`| head -1`)."""
    if not stdout.put(text):
        raise typer.Exit


def emit_json(value: object) -> None:
    """Print a result as one line of JSON."""
    emit(json.dumps(value))


def note(text: str) -> None:
    """Print a note beside the results, on stderr, for whoever still reads it: it changes no exit code."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        stdout.let_go(sys.stderr)


def text(raw: bytes) -> str:
    """Write bytes of unknown origin as text; what is no UTF-8 is escaped."""
    return raw.decode("utf-8", "backslashreplace")


def plain(text: str) -> str:
    """Make text of unknown origin fit to be shown: nothing in it moves the cursor or breaks the line."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def fitted(text: str, width: int) -> str:
    """Make text of unknown origin fit into so many columns of a line."""
    shown = plain(text)
    return shown if len(shown) <= width else f"{shown[: width - 1]}…"
