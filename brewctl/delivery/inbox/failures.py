"""What becomes of an event whose effect fails: tried again, parked, or the downstream stops.

    fails ──► tried again, `attempts` times, with pauses ──still fails──► parked
      └── many in a row, with no success between ──► the downstream stops, and nothing more is parked

Meanwhile later events of its key wait behind it, and other keys go on.
"""

from collections import Counter
from collections.abc import Iterable

import psycopg

from brewctl.delivery.downstream import Downstream, Reject

_SHOWN_CHARACTERS = 300
# Families of SQLSTATE beside data and integrity: cardinality (two rows where one may be), a view's check option,
# a program limit (a key too long for its index), and what a trigger raises.
_ROWS_FAULT = frozenset({"21", "44", "54", "P0"})
Identity = tuple[int, str | None]  # of an event: its outbox id and its event id


class FailingError(Exception):
    """Events of a batch whose effect failed, and which are to be tried again. The message says how many, and why."""


class StoppedError(FailingError):
    """So many events in a row failed that none of them is at fault. The message says how many, and why."""


class Failures:
    """Counts the tries of one downstream that failed. Not for two threads at a time."""

    def __init__(self, downstream: Downstream, *, most_in_a_row: int) -> None:
        self._downstream = downstream
        self._most = most_in_a_row
        self._tries: Counter[Identity] = Counter()
        self._in_a_row: set[Identity] = set()
        self.trouble = ""

    def succeeded(self) -> None:
        """Note a transaction that had effects: what failed before it failed for itself."""
        self._in_a_row.clear()
        self.trouble = ""

    def failed(self, identity: Identity, error: Exception, *, before: int | None = None) -> int | None:
        """Note a try that failed for one event alone; `before`: tries that failed already, where others count them.

        Return how many tries there were where the event is to be parked now, None where it is tried again. Raises
        StoppedError where it is no event's fault.
        """
        if before is not None:
            self._tries[identity] = before
        if isinstance(error, Reject):
            return self._forget(identity) + 1
        self._in_a_row.add(identity)
        if _is_everyones(error) or len(self._in_a_row) >= self._most:
            several = "s" if len(self._in_a_row) > 1 else ""
            self.trouble = f"stopped: {len(self._in_a_row)} event{several} in a row failed: {reason_of(error)}"
            raise StoppedError(self.trouble) from error
        self._tries[identity] += 1
        return self._forget(identity) if self._tries[identity] >= self._downstream.attempts else None

    def settled(self, part: Iterable[Identity]) -> None:
        """Forget the tries of events that are done, or are another's to do."""
        if self._tries:
            for identity in part:
                self._forget(identity)

    def _forget(self, identity: Identity) -> int:
        return self._tries.pop(identity, 0)


def _is_everyones(error: Exception) -> bool:
    """Say whether the next event would fail the same way: a table is not there, or may not be written."""
    return isinstance(error, psycopg.Error) and not blames_a_row(error)


def blames_a_row(error: psycopg.Error) -> bool:
    """Say whether PostgreSQL rejects the data of a row, not the statement, and is neither away nor overloaded."""
    if isinstance(error, psycopg.DataError | psycopg.IntegrityError):
        return True
    if not error.sqlstate:
        return False
    family = error.sqlstate[:2]
    try:
        psycopg.errors.lookup(f"{family}000")
    except KeyError:
        return True  # no family of PostgreSQL's: a trigger's own RAISE … USING ERRCODE
    return family in _ROWS_FAULT


def reason_of(error: Exception) -> str:
    """Say in a line why an effect failed. Of PostgreSQL's message the main part: its details may name other rows."""
    if isinstance(error, psycopg.Error):
        said = f"postgres rejected its effect: {error.diag.message_primary or error}"
    elif isinstance(error, Reject):
        said = str(error) or "rejected"
    else:
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return " ".join(said.split())[:_SHOWN_CHARACTERS]
