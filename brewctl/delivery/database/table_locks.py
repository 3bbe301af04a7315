"""Statements that need an exclusive lock of tables that roles use at the same time.

A statement that waits for an exclusive lock makes all later statements of the table wait behind it. So it waits a
fraction of a second at a time, and does not wait at all while another transaction keeps the table for longer; a
transaction that keeps it too long is named in the error.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, LiteralString, NamedTuple

import psycopg

from brewctl import lifecycle
from brewctl.errors import BrewError
from brewctl.sql import queries

if TYPE_CHECKING:
    from brewctl.delivery.database import BoundedConnection, Connection

_FIRST_S, _LONGEST_S = 0.1, 1.0  # pauses between two tries
Tell = Callable[[str], None]


def nobody(_text: str) -> None:
    """Ignore the text: the `tell` of callers that show no progress."""


class Holder(NamedTuple):
    """A transaction that a change of the schema waits for. A prepared transaction has a `gid` and no `pid`."""

    transaction: str
    pid: int | None
    name: str
    gid: str | None
    age_s: float | None

    def __str__(self) -> str:
        who = f"prepared transaction {self.gid!r}" if self.gid else f"pid {self.pid} ({self.name or 'no name'})"
        return who if self.age_s is None else f"{who}, whose transaction is {self.age_s:.0f} s old"

    @property
    def mend(self) -> str:
        """The SQL that ends the transaction."""
        return f"ROLLBACK PREPARED '{self.gid}';" if self.gid else f"SELECT pg_terminate_backend({self.pid});"


def pauses() -> lifecycle.Backoff:
    """Return the growing pauses between two attempts on a table that is in use."""
    return lifecycle.Backoff(threading.Event(), first_s=_FIRST_S, longest_s=_LONGEST_S)


def until_free(
    connection: "BoundedConnection", attempt: Callable[[], bool], in_the_way: Callable[[], BrewError]
) -> None:
    """Call `attempt` until it returns True; psycopg's LockNotAvailable means another attempt.

    Raises the error that `in_the_way` returns where that takes longer than schema_wait_s.
    """
    deadline = time.monotonic() + connection.limits.schema_wait_s
    between = pauses()
    while True:
        with contextlib.suppress(psycopg.errors.LockNotAvailable):
            if attempt():
                return
        if time.monotonic() > deadline:
            raise in_the_way()
        between.pause()


def change(
    connection: "BoundedConnection", tables: Sequence[str], statement: LiteralString, tell: Tell = nobody
) -> None:
    """Run a statement that locks tables exclusively, in a transaction, as soon as no other transaction uses them.

    Raises BrewError, which names the oldest of those transactions, where that is not within schema_wait_s.
    """
    found: list[Holder] = []
    staying: list[Holder] = []
    told = False
    limits = connection.limits
    longer_from = time.monotonic() + limits.schema_wait_s / 3

    def attempt() -> bool:
        nonlocal found, staying, told
        seen = {holder.transaction for holder in found}
        found = holders(connection, tables)
        staying = [holder for holder in found if holder.transaction in seen]
        # A transaction that was already there at the attempt before may last for hours, such as pg_dump's. Statements
        # of roles would queue behind our wait for its lock, so there is none. Short transactions are waited for.
        if not staying and (seen or not found):
            longer = time.monotonic() > longer_from
            with bounded(connection, limits.schema_lock_longest_s if longer else limits.schema_lock_s):
                connection.execute(statement)
            return True
        if staying and not told:
            tell(f"waits for {staying[0]} …")
            told = True
        return False

    what = f"table {tables[0]}" if len(tables) == 1 else "tables"
    until_free(connection, attempt, lambda: in_use(what, staying or found))


@contextlib.contextmanager
def bounded(connection: "BoundedConnection", lock_s: float | None = None) -> Iterator[None]:
    """A transaction whose statements wait `lock_s` (default: schema_lock_s) for a lock, and run schema_s at most."""
    limits = connection.limits
    with connection.answering_within(limits.schema_s + limits.database_look_s), connection.transaction():
        connection.execute(queries["bound_statements"], {"timeout": f"{limits.schema_s}s"})
        lock_ms = math.ceil((lock_s or limits.schema_lock_s) * 1000)
        connection.execute(queries["bound_locks"], {"timeout": f"{lock_ms}ms"})
        yield


def holders(connection: "Connection", tables: Sequence[str], *, snapshots: bool = False) -> list[Holder]:
    """Return the transactions that hold a lock of these tables, oldest first.

    `snapshots`: also those with an old snapshot, which a concurrent build of an index waits for.
    """
    asked = {"tables": list(tables), "snapshots": snapshots}
    return [Holder(*row) for row in connection.execute(queries["table_holders"], asked)]


def in_use(what: str, found: Sequence[Holder], *, what_for: str = "changed") -> BrewError:
    """Return the error that names the transaction in the way."""
    if not found:
        message = f"{what} can't be {what_for}: transactions hold it one after the other"
        return BrewError(message, hint="run this again when the roles have less to do")
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    message = f"{what} can't be {what_for}: it is in use by {found[0]}{more}"
    hint = f"run this again when that is over, or end it in psql: `{found[0].mend}`"
    return BrewError(message, hint=hint)
