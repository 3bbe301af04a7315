"""Counting large tables once a second without being felt.

An exact count reads a whole index: it is taken as often as it costs a fiftieth of PostgreSQL's time at most, which
for tables of some thousand rows is every time. In between stands the last exact one and what the cumulative
statistics say was inserted since. They count what was rolled back, and are a second late, ten once a session is idle:
an estimate may be wrong by as much.
"""

import time

from brewctl.delivery.database import Connection
from brewctl.lab.top.snapshot import Counters
from brewctl.sql import queries

_SHARE = 50
_MOST_UNPUBLISHED = 100_000  # rows that are counted every time; more are "at least"


class Counting:
    """The counters, from one look to the next. For one connection after another, not for two threads."""

    def __init__(self) -> None:
        self._exact: tuple[int, ...] = ()  # orders, outbox rows, reservations, notifications
        self._inserted: tuple[int, ...] = ()  # what the statistics said then
        self._files: str = ""  # what the tables were stored in: other files after a TRUNCATE
        self._due_s = 0.0

    def look(self, connection: Connection) -> Counters:
        """Count, with one query or two. Raises what psycopg raises."""
        row = connection.execute(queries["pulse"], {"most": _MOST_UNPUBLISHED}).fetchone()
        assert row is not None
        unpublished, set_aside, oldest_s, files, *inserted = row
        now = time.monotonic()
        exact = now >= self._due_s or files != self._files or any(map(int.__lt__, inserted, self._inserted))
        if exact:
            self._exact = connection.execute(queries["totals"]).fetchone() or ()
            self._inserted, self._files = tuple(inserted), files
            took_s = time.monotonic() - now
            self._due_s = now + _SHARE * took_s
        orders, events, reservations, notifications = (
            total + added - before for total, added, before in zip(self._exact, inserted, self._inserted, strict=True)
        )
        return Counters(
            orders=orders,
            unpublished=unpublished,
            published=max(0, events - unpublished),
            reservations=reservations,
            notifications=notifications,
            set_aside=set_aside,
            oldest_s=oldest_s,
            estimated=not exact or unpublished >= _MOST_UNPUBLISHED,
        )
