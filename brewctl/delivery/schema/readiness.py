"""The check for /readyz that a role's database answers and has the tables that the role needs."""

import contextlib
import threading
from collections.abc import Collection, Iterator

import psycopg

from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.database import BoundedConnection
from brewctl.delivery.schema import setup, versions
from brewctl.errors import BrewError
from brewctl.probes.health import Readiness


class DatabaseCheck:
    """Keeps a connection of its own from the first check on, because the role's connections may all be in use."""

    def __init__(self, settings: Settings, *, node: str, tables: Collection[str] | None = None) -> None:
        """`tables`: the tables that the role needs; default: all."""
        self._settings = settings.impatient
        self._node = node
        self._tables = tables
        self._lock = threading.Lock()
        self._held = contextlib.ExitStack()
        self._connection: BoundedConnection | None = None

    def __call__(self) -> Iterator[Readiness]:
        """Yield the findings. Takes at most about database_look_s and one connection attempt."""
        place = f"postgres {database.place(self._settings.database_url)}"
        try:
            with self._lock:
                missing = self._ask()
        except BrewError as error:
            yield Readiness(ready=False, text=f"{error.message}; the schema is not known")
            return
        yield Readiness(ready=True, text=f"{place} answers")
        if missing:
            command = versions.command(missing, self._settings.init_command)
            said = f"missing in postgres: {', '.join(missing)}: run `{command}`"
            yield Readiness(ready=False, text=said)
        else:
            yield Readiness(ready=True, text="the schema fits")

    def close(self) -> None:
        """Close the connection, unless a check is using it: a stop does not wait for a probe."""
        if self._lock.acquire(blocking=False):
            self._drop()
            self._lock.release()

    def _drop(self) -> None:
        self._connection = None
        with contextlib.suppress(BrewError):
            self._held.close()

    def _ask(self) -> list[str]:
        """Return what is missing. Where the kept connection was lost, a new one is tried before that is an outage."""
        if self._connection:
            with contextlib.suppress(psycopg.Error):
                return self._missing(self._connection)
            self._drop()
        with database.explained(self._settings):
            self._connection = self._held.enter_context(database.connect(self._settings, name=self._node))
            return self._missing(self._connection)

    def _missing(self, connection: BoundedConnection) -> list[str]:
        with connection.answering_within(self._settings.limits.database_look_s):
            return setup.missing_tables(connection, tables=self._tables)
