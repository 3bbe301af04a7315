"""`brewctl counts`: the four counters."""

import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from brewctl.cli import options, output

if TYPE_CHECKING:
    from rich.table import Table

    from brewctl.overview import Counts

_EVERY_S = 0.5


def counts(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again every 500 ms, until Ctrl-C.")] = False,
    as_json: options.AsJson = False,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Show how many orders there are, and how far they have come."""
    settings = options.settings(database_url=database_url)
    from brewctl import overview
    from brewctl.delivery import database

    with database.connect(settings) as connection:

        def look() -> tuple["Counts", dict[str, int]]:
            return overview.counts(connection), overview.distribution(connection)

        if as_json or not sys.stdout.isatty():
            while True:
                now, shares = look()
                if as_json:
                    output.emit_json({**asdict(now), "inventory_distribution": shares})
                else:
                    output.emit(str(now))
                    if now.outbox_failed:
                        output.emit(f"outbox_failed={now.outbox_failed}: see `brewctl outbox list --failed`")
                if not watch:
                    return
                time.sleep(_EVERY_S)
        from rich.console import Console
        from rich.live import Live

        console = Console()
        if not watch:
            console.print(_table(*look()))
            return
        with Live(_table(*look()), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(_EVERY_S)
                live.update(_table(*look()), refresh=True)


def _table(now: "Counts", shares: dict[str, int]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in now.story().items():
        table.add_row(name.replace("_", " "), str(value))
    if now.outbox_failed:
        table.add_row("  set aside: see `brewctl outbox list --failed`", str(now.outbox_failed), style="red")
    for node, share in shares.items():
        table.add_row(f"  reserved by {node}", str(share), style="dim")
    return table


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(epilog="Example: brewctl counts --watch")(counts)
