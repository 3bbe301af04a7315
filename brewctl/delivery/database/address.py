"""The address of a database, and the settings of a connection to it."""

import os

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from brewctl.config import Settings
from brewctl.delivery.database.session import Session, server
from brewctl.errors import UsageError

EXAMPLE = "use postgresql://USER@HOST:PORT/NAME"
_PORTS = 65536


def place(url: str) -> str:
    """Return a URL's address without its secrets: host:port/name. Raises UsageError for a malformed URL."""
    try:
        parts = conninfo_to_dict(url)
        named = str(parts.get("port") or "").split(",")
        ports = [int(port) for port in named if port]
    except (psycopg.ProgrammingError, ValueError):
        # libpq's own message quotes the URL with its password.
        raise UsageError("BREW_DATABASE_URL is no PostgreSQL URL", hint=EXAMPLE) from None
    if wrong := [port for port in ports if not 0 < port < _PORTS]:
        raise UsageError(f"BREW_DATABASE_URL has no such port: {wrong[0]}", hint=EXAMPLE)
    # PG* variables fill in what the URL leaves out.
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
    """Return the session that a connection with these settings asks for. Raises UsageError for a malformed URL."""
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
    """Return a connection string for another client of PostgreSQL, with secrets.

    Raises UsageError where the file of a secret can't be read.
    """
    return make_conninfo(**server(settings.database_url, settings.database_security))
