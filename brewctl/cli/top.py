"""`brewctl top`: everything that runs, on one screen."""

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from brewctl import config
from brewctl.cli import options

_FIRST_LOOK_S = 4.0


def top(
    picture: Annotated[
        Path | None,
        typer.Option(help="Write the screen to an SVG after a while, and end; needs no terminal.", metavar="FILE.svg"),
    ] = None,
    after: Annotated[float, typer.Option(help="Seconds to look on before --picture is taken.", min=1, max=3600)] = 10.0,
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
) -> None:
    """Watch everything that runs, on one screen.

    Counters, nodes, brokers, partitions, and what happens to them.

    On the sandbox its keys disturb it: load, another node, SIGTERM, kill -9, pause, restart, of nodes and of servers.
    """
    from brewctl.errors import BrewError, UsageError
    from brewctl.lab.top.app import HEIGHT, WIDTH, Top
    from brewctl.lab.top.controls import Controls
    from brewctl.lab.top.observer import Observer

    if picture is None:
        _require_terminal(WIDTH, HEIGHT)
    elif picture.suffix != ".svg" or not picture.parent.is_dir():
        raise UsageError(f"--picture {picture} must be a .svg file in a folder that is there")
    settings = options.settings(database_url=database_url, brokers=brokers, topic=topic)
    home = config.home()
    mine = options.is_sandbox(settings.configured, "database_url", "brokers")
    where = f"sandbox {home}" if mine else f"{','.join(settings.brokers)}"
    with Observer(settings, home if mine else None).looking() as observer:
        observer.wait_for_first_look(within_s=_FIRST_LOOK_S)
        app = Top(observer, Controls(home, settings) if mine else None, where=where)
        if picture is None:
            app.run(mouse=False)
        else:
            try:
                app.run_for_picture(picture, after_s=after)
            except OSError as error:
                raise BrewError(f"can't write {picture} ({(error.strerror or str(error)).lower()})") from error
            print(f"wrote {picture}", file=sys.stderr)
    raise typer.Exit(app.return_code or 0)


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
