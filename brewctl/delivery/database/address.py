"""Where a database is, and what a connection to it is made with."""

import os

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from brewctl.config import Settings
from brewctl.delivery.database.session import Session, server
from brewctl.errors import UsageError

EXAMPLE = "use postgresql://USER@HOST:PORT/NAME"
_PORTS = 65536


def place(url: str) -> str:
    """Say where a database is without its secrets: host:port/name."""
    try:
        parts = conninfo_to_dict(url)
        named = str(parts.get("port") or "").split(",")
        ports = [int(port) for port in named if port]
    except (psycopg.ProgrammingError, ValueError):
        # libpq's own message quotes the text, password and all.
        raise UsageError("BREW_DATABASE_URL is no PostgreSQL URL", hint=EXAMPLE) from None
    if wrong := [port for port in ports if not 0 < port < _PORTS]:
        raise UsageError(f"BREW_DATABASE_URL has no such port: {wrong[0]}", hint=EXAMPLE)
    # What the URL leaves out the shell may say.
    hosts = str(parts.get("host") or parts.get("hostaddr") or os.environ.get("PGHOST") or "localhost").split(",")
    usual = os.environ.get("PGPORT") or "5432"
    if len(named) == 1:  # for all hosts
        named *= len(hosts)
    elif len(named) != len(hosts):
        raise UsageError(f"BREW_DATABASE_URL has {len(named)} ports for {len(hosts)} hosts", hint=EXAMPLE)
    where = ",".join(f"{host}:{port or usual}" for host, port in zip(hosts, named, strict=True))
    name = parts.get("dbname") or os.environ.get("PGDATABASE") or parts.get("user") or os.environ.get("PGUSER") or ""
    return f"{where}/{name}"


def session_of(
    settings: Settings, name: str, *, statement_s: float | None = None, lock_s: float = 0, by_index: bool = False
) -> Session:
    """Return what a connection of these settings asks the server for. Raises UsageError for a malformed URL."""
    secrets, limits = settings.database_security, settings.limits
    try:
        place(settings.database_url)
    except UsageError as error:
        said = f"{secrets.url.variable}_FILE: {secrets.url.file}" if secrets.url.file else settings.database_variable
        raise UsageError(error.message.replace("BREW_DATABASE_URL", said), hint=error.hint) from None
    return Session(
        settings.database_url,
        name,
        limits,
        statement_s or limits.database_statement_s,
        lock_s,
        by_index,
        secrets=secrets,
    )


def conninfo(settings: Settings) -> str:
    """Return what another client of PostgreSQL connects with, secrets included. Raises UsageError for one's file."""
    return make_conninfo(**server(settings.database_url, settings.database_security))
