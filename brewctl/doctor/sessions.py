"""PostgreSQL's sessions: their default isolation level, and which transactions hold vacuum back."""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import psycopg

from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.database import Connection
from brewctl.doctor.finding import Finding, ok, warn
from brewctl.sql import doctor_queries

# An older transaction is worth a warning.
OLD_S = 60.0
_MINUTES_FROM_S = 120.0
_READ_COMMITTED = ("read committed", "read uncommitted")  # one and the same in PostgreSQL


class Open(NamedTuple):
    """A transaction that has been open for long, a prepared one, or a replication slot without a reader.

    `holds`: it keeps vacuum from removing dead rows. `age_s` is None for a slot, whose age is unknown.
    """

    kind: str
    pid: int | None
    name: str
    age_s: float | None
    holds: bool

    def __str__(self) -> str:
        match self.kind:
            case "session":
                return f"pid {self.pid} ({self.name or 'no name'})"
            case "prepared":
                return f"the prepared transaction '{self.name}'"
            case _:
                return f"replication slot '{self.name}', which has no reader"

    @property
    def mend(self) -> str:
        """How to end it."""
        match self.kind:
            case "session":
                return f"let it end, or end it in psql: `SELECT pg_terminate_backend({self.pid});`"
            case "prepared":
                return f"in psql: `ROLLBACK PREPARED '{self.name}';`, or `COMMIT PREPARED '{self.name}';`"
            case _:
                return f"start its reader, or in psql: `SELECT pg_drop_replication_slot('{self.name}');`"


def open_for_long(connection: Connection) -> Finding:
    """Judge the oldest transactions and the slots that keep vacuum from removing dead rows."""
    return judge_transactions(
        [Open(*row) for row in connection.execute(doctor_queries["open_for_long"], {"age_s": OLD_S})]
    )


def judge_transactions(found: Sequence[Open]) -> Finding:
    """Judge the transactions that have been open for long."""
    if not found:
        return ok("transactions", f"none is older than {OLD_S:g} s, and no slot holds vacuum back")
    # Name one that holds vacuum back, if there is one; among equals the oldest.
    first = min(found, key=lambda each: (not each.holds, -(each.age_s or 0)))
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    ago = "" if first.age_s is None else f" for {_long(first.age_s)}"
    if first.holds:
        text = f"vacuum is held back{ago} by {first}{more}: dead rows stay, and polls slow down"
    else:
        text = f"{first}{more} has had a transaction open{ago}: a change of its tables would wait for it"
    return warn("transactions", text, mend=first.mend)


def _long(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < _MINUTES_FROM_S else f"{seconds / 60:.0f} minutes"


def isolation_of_others(settings: Settings) -> tuple[str, str] | None:
    """Return the default isolation level of a session, and the source of that setting; None: unknown."""
    with (
        contextlib.suppress(psycopg.Error),
        psycopg.connect(
            database.conninfo(settings),
            autocommit=True,
            application_name="brewctl doctor",
            client_encoding="UTF8",  # else psycopg returns the text of an SQL_ASCII database as bytes
            connect_timeout=settings.limits.database_connect_s,
        ) as plain,
    ):
        asked = {"names": ["default_transaction_isolation"]}
        for _, value, source in plain.execute(doctor_queries["settings"], asked):
            return value, source
    return None


def is_above_read_committed(level: str) -> bool:
    """Say whether a transaction of this level fails when a row that it changes has changed since its snapshot."""
    return level not in _READ_COMMITTED
