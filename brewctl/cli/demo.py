"""`brewctl demo`: the whole story in one command."""

import dataclasses
import os
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brewctl.cli import options, output

if TYPE_CHECKING:
    from brewctl.config import Settings
    from brewctl.lab.demo.play import DemoVerdict
    from brewctl.lab.demo.views import LiveView, PlainView
    from brewctl.lab.record.history import Act


class Speed(StrEnum):
    """How long Kafka waits until it gives a killed node's partitions to another node."""

    NORMAL = "normal"
    FAST = "fast"


_FAST_SESSION_S = 6.0  # Kafka's default minimum


def demo(
    orders: Annotated[int, typer.Option(help="How many orders.", min=2, max=100_000)] = 200,
    kill_at: Annotated[
        int | None,
        typer.Option(help="Kill inventory-1 after this many orders.", min=1, show_default="half of the orders"),
    ] = None,
    speed: Annotated[Speed, typer.Option(help="Session timeout of the consumers: 15 s, or fast: 6 s.")] = Speed.NORMAL,
    step: Annotated[bool, typer.Option("--step", help="Wait for a key between the acts.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(help="Write chart and narration to one FILE.html, or the chart to FILE.svg.", metavar="FILE"),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Write what the screen shows to FILE.svg.", metavar="FILE.svg")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the sandbox running afterwards.")] = False,
    secure: options.Secure = None,
    databases: options.Databases = None,
    yes: options.Yes = False,
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
) -> None:
    """Play the story: five nodes, a kill -9, and a verdict.

    It narrates what happens and why. Where no servers are configured, it starts a sandbox, and stops it afterwards.
    """
    from brewctl.errors import ExitCode, UsageError

    kill_at = orders // 2 if kill_at is None else kill_at
    if kill_at >= orders:
        raise UsageError(f"--kill-at {kill_at} must be less than --orders {orders}")
    options.check_file("--report", report, ".html", ".svg")
    options.check_file("--picture", picture, ".svg")
    if step and not os.isatty(0):
        raise UsageError("--step needs a terminal, for its keys")
    from brewctl import config
    from brewctl.cli.sandbox import emptied

    logs = config.home() / "logs" / "demo"
    places = {"database_url": database_url, "brokers": brokers, "topic": topic}
    with emptied("demo", **places, keep=keep, yes=yes, secure=secure, databases=databases) as settings:
        view = _view()
        verdict, act = _play(_at(speed, settings), view, orders=orders, kill_at=kill_at, step=step, logs=logs)
        view.finish(verdict, act)
        if not verdict.ok:
            output.note(f"brewctl: the nodes' logs are in {logs}")
        if report:
            _report(report, act, f"brewctl demo --orders {orders} --kill-at {kill_at} --speed {speed}")
        if picture:
            view.save(verdict, picture)
            output.note(f"wrote {picture}")
    raise typer.Exit(ExitCode.DONE if verdict.ok else ExitCode.FAILED)


def _at(speed: Speed, settings: "Settings") -> "Settings":
    if speed is Speed.NORMAL:
        return settings
    return dataclasses.replace(settings, limits=dataclasses.replace(settings.limits, session_s=_FAST_SESSION_S))


def _view() -> "LiveView | PlainView":
    from rich.console import Console

    from brewctl.lab.demo.views import LiveView, PlainView

    console = Console()
    return LiveView(console) if console.is_terminal and not console.is_dumb_terminal else PlainView()


def _play(
    settings: "Settings", view: "LiveView | PlainView", *, orders: int, kill_at: int, step: bool, logs: Path
) -> "tuple[DemoVerdict, Act]":
    from brewctl.cli.keys import open_keys
    from brewctl.lab.demo import play

    with ExitStack() as stack:
        keys = stack.enter_context(open_keys(0)) if step else None
        stack.enter_context(view.shown())
        return play.run(settings, view, orders=orders, kill_at=kill_at, logs=logs, keys=keys)


def _report(path: Path, act: "Act", command: str) -> None:
    from brewctl.lab import report

    if path.suffix == ".svg":
        report.write_svg(path, act)
    else:
        report.write(path, title="brewctl demo", subtitle=act.title, acts=[act], facts=[("command", command)])
    output.note(f"wrote {path}")


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(epilog="Example: brewctl demo --speed fast --step --report demo.html")(demo)
