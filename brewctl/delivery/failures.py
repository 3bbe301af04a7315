"""What becomes of an event whose effect fails: tried again, set aside, or the downstream stops.

fails ──► tried again, `attempts` times, with pauses; later events of its key wait behind it, other keys go on
└── still fails ──► set aside
many in a row, with no success between ──► no event's fault: the downstream stops, and nothing more is set aside
"""

from collections import Counter

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

    def failed(self, identity: Identity, error: Exception) -> str:
        """Note a try that failed for one event alone; return the reason to set it aside, "" where it is tried again.

        Raises StoppedError where it is no event's fault.
        """
        reason = reason_of(error)
        if isinstance(error, Reject):
            self.forget(identity)
            return reason
        self._in_a_row.add(identity)
        if is_everyones(error) or len(self._in_a_row) >= self._most:
            self.trouble = f"stopped, {len(self._in_a_row)} events in a row failed: {reason}"
            raise StoppedError(self.trouble) from error
        self._tries[identity] += 1
        if self._tries[identity] < self._downstream.attempts:
            return ""
        return f"{reason} ({self.forget(identity)} tries)" if self._downstream.attempts > 1 else reason

    def forget(self, identity: Identity) -> int:
        """Forget the tries of an event, and return how many there were."""
        return self._tries.pop(identity, 0)


def is_the_events(error: Exception) -> bool:
    """Say whether a failed effect may be the event's own fault, and not that of a server, or of a bound of time."""
    return blames_a_row(error) if isinstance(error, psycopg.Error) else True


def is_everyones(error: Exception) -> bool:
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
    """Say in a line why an effect failed. Of PostgreSQL's message only the main part: its details may name other rows."""
    if isinstance(error, psycopg.Error):
        said = f"postgres rejected its effect: {error.diag.message_primary or error}"
    elif isinstance(error, Reject):
        said = str(error) or "rejected"
    else:
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return " ".join(said.split())[:_SHOWN_CHARACTERS]
