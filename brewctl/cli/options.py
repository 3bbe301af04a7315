"""Options that several commands share, and their resolution to Settings."""

import os
import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from brewctl import config
from brewctl.errors import UsageError
from brewctl.limits import Limits

NODE_CHARACTERS = 64
_NODE = re.compile(rf"[A-Za-z0-9._-]{{1,{NODE_CHARACTERS}}}")
_PLACES = "Servers"


def _no_secret(value: str | None) -> str | None:
    # Arguments appear in the shell's history, and every user can list them with `ps`.
    if value and _holds_password(value):
        raise UsageError(
            "--database-url must not hold a password", hint="set BREW_DATABASE_URL, or PGPASSFILE beside the flag"
        )
    return value


def _holds_password(url: str) -> bool:
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        return bool(conninfo_to_dict(url).get("password"))
    except ProgrammingError:
        raise UsageError("--database-url is no PostgreSQL URL", hint="use postgresql://USER@HOST:PORT/NAME") from None


def node_name(value: str) -> str:
    """Return the node name if it is valid or empty. Raises UsageError."""
    if value and not _NODE.fullmatch(value):
        raise UsageError(
            f"--node {value[:80]!r} is no node name", hint=f"use 1 to {NODE_CHARACTERS} letters, digits, '.', '_', '-'"
        )
    return value


def _wait(value: object) -> float:
    from brewctl import waiting

    return waiting.seconds(value)


DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        help=r"PostgreSQL, without a password. \[env: BREW_DATABASE_URL]",
        metavar="URL",
        callback=_no_secret,
        rich_help_panel=_PLACES,
    ),
]
Brokers = Annotated[
    str | None,
    typer.Option(help=r"Kafka brokers. \[env: BREW_KAFKA_BROKERS]", metavar="HOST:PORT,…", rich_help_panel=_PLACES),
]
Topic = Annotated[
    str | None,
    typer.Option(help=rf"Topic. \[env: BREW_TOPIC] \[default: {config.TOPIC}]", rich_help_panel=_PLACES),
]
Addr = Annotated[
    list[str] | None,
    typer.Option(
        help=(
            r"Address of an order-service; several take turns. \[env: BREW_ORDER_ADDRS] "
            r"\[default: those in the background, else 127.0.0.1:50081]"
        ),
        metavar="HOST:PORT",
    ),
]
Downstreams = Annotated[
    list[str] | None,
    typer.Option(
        "--downstream",
        help=(
            r"A downstream: inventory, notifications, or your own MODULE:NAME; several times. "
            r"\[env: BREW_DOWNSTREAMS] \[default: the story's two]"
        ),
        metavar="NAME",
        rich_help_panel=_PLACES,
    ),
]
Node = Annotated[
    str,
    typer.Option(
        help="Name of this replica, for log lines and headers.", callback=node_name, show_default="the role and the pid"
    ),
]
AppDir = Annotated[
    str,
    typer.Option(
        help="Folder with MODULE.", metavar="FOLDER", show_default="the working directory", envvar="BREW_APP_DIR"
    ),
]
Wait = Annotated[
    float,
    typer.Option(
        help="How long to wait for missing servers, tables and topics; 0: fail at once.",
        metavar="SECONDS|forever",
        envvar="BREW_WAIT",
        parser=_wait,
        show_default=False,
    ),
]
Http = Annotated[
    str,
    typer.Option(
        "--http",
        help="Serve /metrics, /livez and /readyz at this address; port 0: a free one.",
        metavar="HOST:PORT",
        envvar=config.HTTP_VARIABLE,
        show_default="nothing is served",
    ),
]
Format = Annotated[config.LogFormat, typer.Option("--log-format", help="Format of log lines, on stderr.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Secure = Annotated[
    bool | None,
    typer.Option("--secure/--no-secure", help="Require TLS and passwords, in a new sandbox.", show_default="no-secure"),
]


class Separation(StrEnum):
    """How many databases a sandbox has."""

    ONE = "one"
    SEPARATE = "separate"


Databases = Annotated[
    Separation | None,
    typer.Option(
        "--databases",
        help="In a new sandbox: one database, or a separate one for each service.",
        show_default="one",
    ),
]
_SERVERS = {"database_url", "brokers", "order_addrs"}
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask before data are destroyed.")]


def settings(
    *,
    database_url: str | None = None,
    brokers: str | None = None,
    topic: str | None = None,
    order_addrs: str | None = None,
    downstreams: Sequence[str] | None = None,
    limits: Limits | None = None,
) -> config.Settings:
    """Resolve a command's settings: from its flags, else the environment, the running sandbox, the defaults."""
    from brewctl.sandbox import state

    flags = {
        "database_url": database_url,
        "brokers": brokers,
        "topic": topic,
        "order_addrs": order_addrs,
        "downstreams": ",".join(downstreams or ()),
    }
    try:
        found = state.endpoints(config.home())
    except (UsageError, state.UnreadableHomeError) as error:
        if os.environ.get("BREW_HOME"):
            raise
        # A user without a home folder has no sandbox. A user whose home can't be read, as in a container, needs no
        # sandbox if the servers are configured.
        resolved = config.resolve(flags, os.environ, {}, limits)
        if isinstance(error, state.UnreadableHomeError) and not resolved.configured & _SERVERS:
            raise
        return resolved
    return config.resolve(flags, os.environ, found, limits)


def configured_downstreams() -> tuple[str, ...]:
    """Return the downstreams that the environment names. A sandbox names none, so its state is not read."""
    return config.resolve({}, os.environ, {}).downstreams


def check_file(option: str, path: Path | None, *suffixes: str) -> None:
    """Raise UsageError for a file that could not be written: a wrong suffix, or a missing folder."""
    if path and (path.suffix not in suffixes or not path.parent.is_dir()):
        raise UsageError(f"{option} {path} must be a {' or '.join(suffixes)} file in a folder that is there")


def is_sandbox(configured: frozenset[str], *names: str) -> bool:
    """Say whether these servers are the sandbox's: it runs, and no flag or variable names another."""
    from brewctl.sandbox import state

    return not configured & set(names) and set(names) <= state.endpoints(config.home()).keys()


def confirm_destruction(what: str, *, mine: bool, yes: bool) -> None:
    """Ask before `what` is destroyed, unless it is the sandbox's (`mine`) or `yes`. Refuses without a terminal."""
    confirm(f"this destroys {what}", yes=mine or yes)


def confirm(consequence: str, *, yes: bool) -> None:
    """Ask the user to confirm a consequence, unless `yes`. Raises UsageError without a terminal."""
    if yes:
        return
    if not (os.isatty(0) and os.isatty(2)):
        raise UsageError(consequence, hint="add --yes to do it without a question")
    typer.confirm(f"{consequence[:1].upper()}{consequence[1:]}. Go on?", abort=True, err=True)
