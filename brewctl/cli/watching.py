"""The loop of `--watch`. An outage of a server is noted, and does not end the watch."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TypeVar

from brewctl.cli import output
from brewctl.errors import BrewError

if TYPE_CHECKING:
    from rich.console import RenderableType

_Server = TypeVar("_Server")
_Seen = TypeVar("_Seen")


def later(
    connect: Callable[[], AbstractContextManager[_Server]], look: Callable[[_Server], _Seen], *, every_s: float
) -> Iterator[_Seen | BrewError]:
    """Yield a look every `every_s` seconds, for ever. After an error, yield that, and connect again."""
    while True:
        time.sleep(every_s)
        try:
            with connect() as server:
                while True:
                    yield look(server)
                    time.sleep(every_s)
        except BrewError as error:
            yield error


def show_lines(first: _Seen, later: Iterable[_Seen | BrewError], emit: Callable[[_Seen], None], *, server: str) -> None:
    """Print each look. Note each outage of the server, and its end, on stderr."""
    gone = False
    for seen in itertools.chain([first], later):
        if isinstance(seen, BrewError):
            if not gone:
                output.note(f"brewctl: {away(seen)}")
            gone = True
            continue
        if gone:
            output.note(f"brewctl: {server} answers again")
            gone = False
        emit(seen)


def show_live(first: _Seen, later: Iterable[_Seen | BrewError], draw: Callable[[_Seen], "RenderableType"]) -> None:
    """Draw each look in place of the last one; during an outage, show the error below the last look."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    drawn = draw(first)
    with Live(drawn, console=Console(), auto_refresh=False) as live:
        for seen in later:
            if isinstance(seen, BrewError):
                live.update(Group(drawn, Text(away(seen), style="bold red")), refresh=True)
            else:
                drawn = draw(seen)
                live.update(drawn, refresh=True)


def away(error: BrewError) -> str:
    """Return the note for an outage."""
    return f"{error.message}: trying again"
