"""`brewctl counts`: the four counters."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from brewctl.cli import options, output, watching

if TYPE_CHECKING:
    from rich.table import Table

    from brewctl.delivery.schema.homes import Databases
    from brewctl.errors import BrewError
    from brewctl.overview import Counts

    # The counters, reservations by node, and why a downstream's own database could not be asked.
    Seen = tuple[Counts, dict[str, int], BrewError | None]

_EVERY_S = 0.5


def counts(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Repeat every 500 ms, until Ctrl-C.")] = False,
    as_json: options.AsJson = False,
    database_url: options.DatabaseUrl = None,
    downstream: options.Downstreams = None,
) -> None:
    """Show how many orders there are, and how far they have come."""
    settings = options.settings(database_url=database_url, downstreams=downstream)
    from brewctl import overview
    from brewctl.delivery.schema import homes
    from brewctl.errors import BrewError

    asked = settings.impatient if watch else settings

    def look(databases: "Databases") -> "Seen":
        now, away = overview.with_homes(databases)
        try:
            shares = overview.distribution(databases)
        except BrewError as error:
            shares, away = {}, away or error
        return now, shares, away

    with homes.opened(settings) as databases:
        first = look(databases)
    later = watching.later(lambda: homes.opened(asked), look, every_s=_EVERY_S) if watch else ()
    if sys.stdout.isatty() and not as_json:
        watching.show_live(first, later, _table)
    else:
        watching.show_lines(first, later, _lines(as_json=as_json, watch=watch), server="postgres")
    if (away := first[2]) and not watch:
        raise away


def _lines(*, as_json: bool, watch: bool) -> "Callable[[Seen], None]":
    """Return a function that prints a look. With `watch` it also notes outages of downstreams' databases on stderr."""
    emit = _emit_json if as_json else _print
    said: list[BrewError] = []  # the outage that was noted, if one goes on

    def show(seen: "Seen") -> None:
        if (away := seen[2]) and watch and not said:
            said.append(away)
            output.note(f"brewctl: {watching.away(away)}")
        elif said and not away:
            said.clear()
            output.note("brewctl: every downstream's database answers again")
        emit(seen)

    return show


def _emit_json(seen: "Seen") -> None:
    now, shares, _ = seen
    output.emit_json(
        {
            **now.story(),
            "outbox_failed": now.outbox_failed,
            "parked": now.parked,
            "downstreams": now.further,
            "inventory_distribution": shares,
        }
    )


def _print(seen: "Seen") -> None:
    now, *_ = seen
    output.emit(str(now))
    if now.outbox_failed:
        output.emit(f"outbox_failed={now.outbox_failed}: see `brewctl outbox list --failed`")
    if now.parked:
        output.emit(f"parked={now.parked}: see `brewctl dlq list`")


def _table(seen: "Seen") -> "Table":
    from rich import box
    from rich.table import Table

    now, shares, away = seen
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in now.shown().items():
        table.add_row(name.replace("_", " "), "?" if value is None else str(value))
    if now.outbox_failed:
        table.add_row("  set aside: see `brewctl outbox list --failed`", str(now.outbox_failed), style="red")
    if now.parked:
        table.add_row("  parked: see `brewctl dlq list`", str(now.parked), style="red")
    if away:
        table.add_row(f"  {away.message}", "", style="red")
    for node, share in shares.items():
        table.add_row(f"  reserved by {node}", str(share), style="dim")
    return table


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(epilog="Example: brewctl counts --watch")(counts)
