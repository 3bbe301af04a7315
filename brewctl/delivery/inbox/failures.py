"""Retries an event whose effect fails, parks it, or stops the downstream.

    fails ──► tried again, `attempts` times, with pauses ──still fails──► parked
      └── many in a row, with no success between ──► the downstream stops, and nothing more is parked

Meanwhile later events of its key wait, and other keys go on. `inbox` and `lane_call` ask it about each failure.
"""

from collections import Counter
from collections.abc import Iterable

import psycopg

from brewctl.delivery.database import UNAVAILABLE
from brewctl.delivery.downstream import Downstream, Reject
from brewctl.delivery.inbox.batch import Identity

# PostgreSQL is there, and cancelled a statement, or ended its session, for taking longer than its timeout.
SLOW = (
    psycopg.errors.QueryCanceled,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.TransactionTimeout,
)
_SHOWN_CHARACTERS = 300
# SQLSTATE classes beside data and integrity errors: cardinality (two rows where one may be), a view's check option,
# a program limit (a key too long for its index), and errors that a trigger raises.
_ROWS_FAULT = frozenset({"21", "44", "54", "P0"})


class FailingError(Exception):
    """Effects of events failed, and are to be tried again. The message says how many, and why."""


class StoppedError(FailingError):
    """Too many events in a row failed for one event to be at fault. The message says how many, and why."""


class Failures:
    """Counts the failed tries of one downstream. Not for two threads at a time."""

    def __init__(self, downstream: Downstream, *, most_in_a_row: int) -> None:
        self._downstream = downstream
        self._most = most_in_a_row
        self._tries: Counter[Identity] = Counter()
        self._in_a_row: set[Identity] = set()
        self.trouble = ""

    def succeeded(self) -> None:
        """Note a transaction that had effects: earlier failures were those of single events."""
        self._in_a_row.clear()
        self.trouble = ""

    def failed(self, identity: Identity, error: Exception, *, before: int | None = None) -> int | None:
        """Note a failed try of one event. `before`: its earlier failed tries, where the caller counts them.

        Return how many tries it has had if it is to be parked now, None if it is to be tried again. Raises
        StoppedError where the fault is not the event's.
        """
        if before is not None:
            self._tries[identity] = before
        if isinstance(error, Reject):
            return self._forget(identity) + 1
        self._in_a_row.add(identity)
        if _fails_for_all(error) or len(self._in_a_row) >= self._most:
            several = "s" if len(self._in_a_row) > 1 else ""
            self.trouble = f"stopped: {len(self._in_a_row)} event{several} in a row failed: {reason_of(error)}"
            raise StoppedError(self.trouble) from error
        self._tries[identity] += 1
        return self._forget(identity) if self._tries[identity] >= self._downstream.attempts else None

    def settled(self, part: Iterable[Identity]) -> None:
        """Forget the tries of events that are processed, or belong to another node now."""
        if self._tries:
            for identity in part:
                self._forget(identity)

    def _forget(self, identity: Identity) -> int:
        return self._tries.pop(identity, 0)


def is_countable(error: Exception) -> bool:
    """Tell whether a failed try counts against the event, or the downstream: PostgreSQL was neither away nor slow."""
    if isinstance(error, psycopg.Error) and blames_a_row(error):
        return True  # psycopg makes some of these OperationalErrors
    return not isinstance(error, (*SLOW, *UNAVAILABLE))


def _fails_for_all(error: Exception) -> bool:
    """Tell whether every event would fail with this error: a table is missing, or may not be written."""
    return isinstance(error, psycopg.Error) and not blames_a_row(error)


def blames_a_row(error: psycopg.Error) -> bool:
    """Tell whether PostgreSQL rejects a row's data, and not the statement, and is neither away nor overloaded."""
    if isinstance(error, psycopg.DataError | psycopg.IntegrityError):
        return True
    if not error.sqlstate:
        return False
    family = error.sqlstate[:2]
    try:
        psycopg.errors.lookup(f"{family}000")
    except KeyError:
        return True  # no class of PostgreSQL's: a trigger's own RAISE … USING ERRCODE
    return family in _ROWS_FAULT


def reason_of(error: Exception) -> str:
    """Return in one line why an effect failed. PostgreSQL's DETAIL is left out: it may show other rows."""
    if isinstance(error, psycopg.Error):
        said = f"postgres rejected its effect: {error.diag.message_primary or error}"
    elif isinstance(error, Reject):
        said = str(error) or "rejected"
    else:
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return " ".join(said.split())[:_SHOWN_CHARACTERS]
