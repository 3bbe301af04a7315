"""Decides from which outbox id a publisher fetches: ahead in the order of ids, and again behind what it has read.

A fetch reads the first ready rows above an id, up to its limit, and takes those that it can. Rows that it can't take
are left behind, and the next fetch does not read them again, however many they are: rows of aggregates that another
publisher has locked or that wait behind a row set aside, rows of missing topics, and published rows whose entries are
still in the index.

Rows also become ready behind that id: a transaction commits later than others with greater ids, rows are retried or
republished, another publisher fails. So each fetch reads the last ids again. All ids below those are read from the
first one on, in steps, over and over; while no row is found, these steps take at most a twentieth of the time.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from psycopg.rows import TupleRow

from brewctl.delivery.database.short_transaction import ShortTransaction
from brewctl.sql import queries

_HIGHEST = 2**63 - 1  # no id is greater
# Looks behind may take _SHARE of the time, saved up for _SAVED_FOR_S at most. Each should take _LOOK_S, and reads fewer
# ids where the last one took longer.
_SHARE = 0.05
_SAVED_FOR_S = 1.0
_LOOK_S = 0.01
_FEWEST_IDS = 1000


@dataclass(frozen=True, slots=True)
class Fetched:
    """The rows of a fetch, and which ids it has read."""

    rows: Sequence[TupleRow]
    limit: int
    after: int  # it read ids above this one
    read: int  # how many ready rows it read, with those that it could not take
    last: int  # up to this id there is no other row to take
    ends: bool  # whether no row has a greater id
    more: bool  # whether there may be more rows to take now


class Scan:
    """One publisher's position in the outbox. Not thread-safe."""

    def __init__(self) -> None:
        self._bound = 0  # a fetch reads ids above it
        self._behind = 0  # the next look behind, at ids up to the bound, reads those above this one
        self._step = _HIGHEST  # how many ids a look behind reads
        self._found_behind = False  # whether the last look behind found rows
        self._was_behind = False  # whether the last rows to publish came from a look behind
        self._saved_s = 0.0  # the seconds that looks behind may take now
        self._saved_at = time.monotonic()
        self._ahead_s = 0.0  # the seconds of the last fetch above the bound
        self._expects = True  # whether there are probably rows to take

    def fetch(
        self,
        transaction: ShortTransaction,
        *,
        limit: int,
        size: int,
        without_topics: Collection[str],
        expects: bool = True,
    ) -> Fetched:
        """Read and lock rows to publish: up to `limit`, of `size` bytes in all, but at least one.

        `expects` False: there is probably no row. Then a statement that costs a third of a fetch and begins no
        transaction asks first whether there is any; where there is one, that is a round trip more. Call `settle` with
        the result after the commit.
        """
        asked = {"limit": limit, "bytes": size, "without_topics": list(without_topics)}
        self._expects = expects
        now = time.monotonic()
        self._saved_s = min(_SHARE * _SAVED_FOR_S, self._saved_s + _SHARE * (now - self._saved_at))
        self._saved_at = now
        looks = [self._look_ahead]
        if self._bound and (self._saved_s > 0 or self._found_behind):
            # Alternate where there are rows behind and ahead, so that neither waits for all of the others.
            looks.insert(1 if self._was_behind else 0, self._look_behind)
        more = False
        for look in looks:
            fetched = look(transaction, asked)
            more |= fetched.more
            if fetched.rows or (fetched.ends and fetched.after < self._bound):
                break
            self.settle(fetched)
        return replace(fetched, more=more)

    def settle(self, fetched: Fetched, left: Collection[int] = ()) -> None:
        """Note that the rows of a fetch are published or set aside, except those `left`, which are read again."""
        last = min([fetched.last, *(row_id - 1 for row_id in left)])
        self._was_behind = bool(fetched.rows) and fetched.after < self._bound
        if self._was_behind and len(left) == len(fetched.rows):
            self._found_behind = False
        if fetched.after < self._bound:
            self._behind = last if last < self._bound else 0
        # The next fetch reads the last ids again, unless so many of these rows can't be taken that they would fill it.
        crowded = 2 * (fetched.read - len(fetched.rows)) > fetched.limit
        bound = last if crowded else max(last - fetched.limit, 0)
        if last >= self._bound:
            self._bound = max(self._bound, bound)

    def _look_ahead(self, transaction: ShortTransaction, asked: dict[str, Any]) -> Fetched:
        began = time.monotonic()
        fetched = self._fetch(transaction, asked, after=self._bound, until=_HIGHEST)
        if fetched.last < self._bound:
            # The table was emptied, and its ids start again at 1.
            self._bound = self._behind = 0
            fetched = self._fetch(transaction, asked, after=0, until=_HIGHEST)
        if self._bound:
            self._ahead_s = time.monotonic() - began
        return fetched

    def _look_behind(self, transaction: ShortTransaction, asked: dict[str, Any]) -> Fetched:
        """Fetch from ids up to the bound, in steps, until a row is found, all are read, or the saved time is used up.

        The last step also reads above the bound.
        """
        while True:
            until = self._behind + self._step
            reaches = until >= self._bound
            began = time.monotonic()
            fetched = self._fetch(transaction, asked, after=self._behind, until=_HIGHEST if reaches else until)
            took_s = time.monotonic() - began
            self._found_behind = any(row[0] <= self._bound for row in fetched.rows)
            if not self._found_behind:
                self._saved_s -= took_s
            # The time that a fetch of rows takes anyway does not depend on the ids read.
            took_s -= self._ahead_s if fetched.rows else 0.0
            self._pace(took_s, min(fetched.last, self._bound) - self._behind, whole=not reaches)
            if fetched.rows or fetched.ends:
                return fetched
            self.settle(fetched)
            if self._saved_s <= 0 or not self._behind:
                return fetched

    def _pace(self, took_s: float, ids: int, *, whole: bool) -> None:
        """Choose how many ids the next look behind reads, by the time of the last; `whole`: that read a full step."""
        if took_s > _LOOK_S:
            self._step = max(_FEWEST_IDS, int(ids * _LOOK_S / took_s))
        elif whole and took_s < _LOOK_S / 2:
            self._step = min(_HIGHEST, 2 * self._step)

    def _fetch(self, transaction: ShortTransaction, asked: dict[str, Any], *, after: int, until: int) -> Fetched:
        bounds = {**asked, "after": after, "until": until}
        if not (self._expects or transaction.began):
            ((any_ready, last),) = transaction.peek(queries["any_ready"], bounds).fetchall()
            if not any_ready:
                ends = until == _HIGHEST
                return Fetched(rows=[], limit=asked["limit"], after=after, read=0, last=last, ends=ends, more=False)
        found = transaction.execute(queries["fetch_unpublished"], bounds).fetchall()
        *_, next_id, read, last = found[-1]
        rows = [row for row in found if row[0] is not None]
        limit = asked["limit"]
        ends = until == _HIGHEST and read < limit and next_id is None
        behind = bool(rows) and until != _HIGHEST
        return Fetched(
            rows=rows,
            limit=limit,
            after=after,
            read=read,
            last=next_id - 1 if next_id is not None else last,
            ends=ends,
            more=behind or next_id is not None or read >= limit,
        )
