"""`brewctl demo`: the whole story in one command."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brewctl.cli import options

if TYPE_CHECKING:
    from brewctl.config import Settings


def demo(
    orders: Annotated[int, typer.Option(help="How many orders.", min=2, max=100_000)] = 200,
    kill_at: Annotated[
        int | None,
        typer.Option(help="Kill inventory-1 after this many.", min=1, show_default="half of the orders"),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the sandbox running afterwards.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write a picture of it to FILE.svg.", metavar="FILE.svg")] = None,
    yes: options.Yes = False,
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
) -> None:
    """Play the story: five nodes, 200 orders, a kill -9 in the middle, and a verdict.

    Brings up a sandbox where no servers are configured, and takes down what it brought up.
    """
    from brewctl import config
    from brewctl.errors import UsageError

    kill_at = orders // 2 if kill_at is None else kill_at
    if kill_at >= orders:
        raise UsageError(f"--kill-at {kill_at} must be less than --orders {orders}")
    if report and (report.suffix != ".svg" or not report.parent.is_dir()):
        raise UsageError(f"--report {report} must be a .svg file in a folder that is there")
    from brewctl.cli.sandbox import emptied

    places = {"database_url": database_url, "brokers": brokers, "topic": topic}
    with emptied("demo", **places, keep=keep, yes=yes) as settings:
        code = _play(settings, orders, kill_at, report, config.home())
    raise typer.Exit(code)


def _play(settings: "Settings", orders: int, kill_at: int, report: Path | None, home: Path) -> int:
    from rich.console import Console
    from rich.live import Live

    from brewctl.errors import ExitCode
    from brewctl.lab import demo as play
    from brewctl.lab.views import LiveView, PlainView

    console = Console()
    logs = home / "logs" / "demo"
    if console.is_terminal and not console.is_dumb_terminal:
        with Live(console=console, refresh_per_second=8) as live:
            view: LiveView | PlainView = LiveView(console, live)
            verdict = play.run(settings, view, orders=orders, kill_at=kill_at, logs=logs)
            view.finish(verdict)
    else:
        view = PlainView(console)
        verdict = play.run(settings, view, orders=orders, kill_at=kill_at, logs=logs)
        view.finish(verdict)
    if report:
        view.save(verdict, report)
        print(f"wrote {report}", file=sys.stderr)
    if not verdict.ok:
        print(f"brewctl: the nodes' logs are in {logs}", file=sys.stderr)
    return ExitCode.DONE if verdict.ok else ExitCode.FAILED


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(epilog="Example: brewctl demo --orders 500 --kill-at 100")(demo)
