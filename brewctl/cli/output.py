"""Print results on stdout, and notes on stderr."""

import json
import sys

import typer

from brewctl import stdout

verbose = False  # set by `brewctl -v`: debug logs, and tracebacks of errors


def emit(text: str) -> None:
    """Print a result at once. Ends the command quietly if stdout is closed (`| head -1`)."""
    if not stdout.put(text):
        raise typer.Exit


def emit_json(value: object) -> None:
    """Print a result as one line of JSON."""
    emit(json.dumps(value))


def note(text: str) -> None:
    """Print a note on stderr. If stderr is closed, the note is lost, and the command goes on."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        stdout.let_go(sys.stderr)


def text(raw: bytes) -> str:
    """Decode bytes of unknown origin; bytes that are no UTF-8 are escaped."""
    return raw.decode("utf-8", "backslashreplace")


def plain(text: str) -> str:
    """Escape unprintable characters of text of unknown origin, which could move the cursor or break the line."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def fitted(text: str, width: int) -> str:
    """Escape text of unknown origin, and shorten it to `width` characters."""
    shown = plain(text)
    return shown if len(shown) <= width else f"{shown[: width - 1]}…"
