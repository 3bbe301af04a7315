"""What `--watch` shows, until Ctrl-C: a server that goes away costs a line, and not the watch."""

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
    """Look every `every_s` seconds, for ever; or say what is wrong, and connect anew."""
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
    """Print each look; on stderr, once an outage, that the server is away, and that it is back."""
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
    """Draw each look in the place of the one before; below the last one, what is wrong."""
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
    """Say that a server is away."""
    return f"{error.message}: trying again"
