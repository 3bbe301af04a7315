"""`brewctl top`: watch the whole system on one screen."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brewctl import config
from brewctl.cli import options, output

if TYPE_CHECKING:
    from brewctl.config import Settings

_FIRST_LOOK_S = 4.0


def top(
    picture: Annotated[
        Path | None,
        typer.Option(help="Write the screen to an SVG file, and end; needs no terminal.", metavar="FILE.svg"),
    ] = None,
    after: Annotated[float, typer.Option(help="Seconds before --picture is taken.", min=1, max=3600)] = 10.0,
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
    downstream: options.Downstreams = None,
) -> None:
    """Watch everything that runs, on one screen.

    It shows counters, nodes, brokers, partitions and events.

    Lag is counted from committed offsets, which consumers commit once a second.

    On a sandbox, keys start load, add nodes, and terminate, kill, pause and restart nodes and servers.
    """
    from brewctl.lab import report
    from brewctl.lab.top.app import Top
    from brewctl.lab.top.controls import Controls
    from brewctl.lab.top.keys import adding
    from brewctl.lab.top.layout import HEIGHT, WIDTH
    from brewctl.lab.top.observer import Observer

    options.check_file("--picture", picture, ".svg")
    if picture is None:
        _require_terminal(WIDTH, HEIGHT)
    settings = options.settings(database_url=database_url, brokers=brokers, topic=topic, downstreams=downstream)
    home = config.home()
    mine = _is_sandbox(settings, home)
    where = (
        f"sandbox {home}{', secured' if settings.kafka_security.protocol.encrypts else ''}"
        if mine
        else ",".join(settings.brokers)
    )
    with Observer(settings, home if mine else None).looking() as observer:
        observer.wait_for_first_look(within_s=_FIRST_LOOK_S)
        app = Top(
            observer,
            Controls(home, settings) if mine else None,
            where=where,
            adds=adding(settings),
            security=settings.order_security,
        )
        if picture is None:
            app.run(mouse=False)
        elif drawn := app.run_for_picture(after_s=after):
            report.write_terminal(picture, drawn)
            output.note(f"wrote {picture}")
        for line in app.finish():
            output.note(line)
    if app.failure:
        raise app.failure
    raise typer.Exit(app.return_code or 0)


def _is_sandbox(settings: "Settings", home: Path) -> bool:
    """Say whether these are the sandbox's servers, also if the variables of `brewctl env` name them."""
    from brewctl.sandbox import state

    asked = {"database_url": settings.database_url, "brokers": ",".join(settings.brokers)}
    return asked.items() <= state.endpoints(home).items()


def _require_terminal(width: int, height: int) -> None:
    from brewctl.errors import UsageError

    if not (os.isatty(0) and os.isatty(1)) or os.environ.get("TERM") == "dumb":
        hint = "use `brewctl counts --watch`, `brewctl groups --watch` or `brewctl status`"
        raise UsageError("top needs a terminal", hint=hint)
    size = shutil.get_terminal_size()
    if size.columns < width or size.lines < height:
        message = f"top needs a terminal of {width} x {height}, this one is {size.columns} x {size.lines}"
        raise UsageError(message, hint="make it larger")


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(epilog="Example: brewctl top")(top)
