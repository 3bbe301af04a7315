"""Count large tables every second without loading PostgreSQL.

An exact count reads a whole index. So exact counts take a fiftieth of PostgreSQL's time at most; for tables of some
thousand rows that is every second. In between, a count is estimated: the last exact one, plus the inserts since then by
PostgreSQL's cumulative statistics. Those include rolled-back inserts, and are a second late, or ten while a session is
idle.
"""

import time
from collections.abc import Callable, Sequence

from brewctl.delivery.database import Connection
from brewctl.delivery.downstream import Downstream
from brewctl.errors import BrewError
from brewctl.lab.top.snapshot import Counters
from brewctl.overview import effects
from brewctl.sql import queries

_SHARE = 50
_MOST_UNPUBLISHED = 100_000  # unpublished rows are counted exactly up to this number


class Counting:
    """Keeps the counters between looks, also over several connections. Not thread-safe."""

    def __init__(self, downstreams: Sequence[Downstream] = ()) -> None:
        self._story = _Tally(_totals, lambda _connection: ["orders", "outbox"])
        self._effects = [(each.counted_as, Effects(each)) for each in downstreams]

    def look(self, connection: Connection) -> Counters:
        """Return the counters. Takes a few queries; raises psycopg.Error."""
        row = connection.execute(queries["pulse"], {"most": _MOST_UNPUBLISHED}).fetchone()
        assert row is not None
        unpublished, set_aside, oldest_s = row
        (orders, events), about = self._story.look(connection)
        estimated = {"orders", "published"} if about or unpublished >= _MOST_UNPUBLISHED else set[str]()
        done: dict[str, int | None] = {}
        for name, each in self._effects:
            done[name], about = each.look(connection)
            estimated |= {name} if about else set()
        return Counters(
            orders=orders,
            unpublished=unpublished,
            published=max(0, events - unpublished),
            effects=done,
            set_aside=set_aside,
            oldest_s=oldest_s,
            estimated=frozenset(estimated),
        )


class Effects:
    """Counts the effects of a downstream, also over several connections. Not thread-safe."""

    def __init__(self, downstream: Downstream) -> None:
        # An estimate needs a single table: the statistics of several don't tell how many rows the `done` query has.
        def tables(connection: Connection) -> list[str]:
            found = effects.tables(connection, downstream)
            return found if len(found) == 1 else []

        self._tally = _Tally(lambda connection: (effects.number(connection, downstream),), tables)

    def look(self, connection: Connection) -> tuple[int | None, bool]:
        """Return the number of effects, or None if the `done` query fails; and whether that is an estimate."""
        try:
            (done,), about = self._tally.look(connection)
        except BrewError:
            return None, False
        return done, about


class _Tally:
    """Numbers that one query counts, each of which grows with the inserts into one table."""

    def __init__(
        self, count: Callable[[Connection], tuple[int, ...]], tables: Callable[[Connection], list[str]]
    ) -> None:
        self._count = count
        self._find_tables = tables
        self._tables: list[str] | None = None
        self._exact: tuple[int, ...] = ()
        self._inserted: list[int] = []  # by the statistics, at the last exact count
        self._files: str = ""  # the tables' files, which change with a TRUNCATE
        self._due_s = 0.0

    def look(self, connection: Connection) -> tuple[tuple[int, ...], bool]:
        """Return the numbers, and whether they are estimates."""
        if self._tables is None:
            self._tables = self._find_tables(connection)
        row = connection.execute(queries["inserted"], {"tables": self._tables}).fetchone()
        assert row is not None
        files, inserted = row
        now = time.monotonic()
        if now >= self._due_s or files != self._files or any(map(int.__lt__, inserted, self._inserted)):
            self._exact = self._count(connection)
            self._inserted, self._files = inserted, files
            self._due_s = time.monotonic() + _SHARE * (time.monotonic() - now)
            return self._exact, False
        added = [new - before for new, before in zip(inserted, self._inserted, strict=True)] or [0] * len(self._exact)
        return tuple(total + more for total, more in zip(self._exact, added, strict=True)), True


def _totals(connection: Connection) -> tuple[int, ...]:
    return connection.execute(queries["totals"]).fetchone() or ()
