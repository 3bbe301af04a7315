"""Finds published rows whose records a group has lost, and publishes them again.

A group loses records where Kafka removes them before it has read them, or a topic is truncated or recreated: it goes on
at the first record there is, without lag, and effects are missing. The rows are still in the outbox. The record of a
row published again comes after newer events of its key; a group that has processed it skips it by its outbox id.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from brewctl.config import Settings
from brewctl.delivery import registry
from brewctl.delivery.broker import open_admin
from brewctl.delivery.database import Connection
from brewctl.delivery.repair.dead_letters import Filter, open_dead_letters
from brewctl.delivery.schema import homes
from brewctl.delivery.schema.homes import Home
from brewctl.sql import queries

_PAGE = 5000  # rows looked at by one statement


@dataclass(frozen=True, slots=True)
class Missing:
    """A published row that a group has not processed and can't read any more."""

    id: int
    group: str
    partition: int
    offset: int
    why: str  # its offset is before the first record ("removed"), behind the last ("cut off"), or "passed" by the group


@dataclass
class Summary:
    """How many rows are missing, by group and reason. A row that two groups lack counts once in `rows`."""

    rows: int = 0
    last: int = 0  # id
    lacking: Counter[tuple[str, str]] = field(default_factory=Counter)  # by group and reason

    def add(self, missing: Iterable[Missing]) -> None:
        """Count rows, in the order of their ids."""
        for row in missing:
            self.rows += row.id != self.last
            self.last = row.id
            self.lacking[row.group, row.why] += 1


@dataclass(frozen=True, slots=True)
class _Topic:
    """The offsets of the topic and its groups, read in an order in which no row in flight looks missing."""

    asked_at: datetime
    takes: Sequence[tuple[str, str]]  # pairs of a downstream's group and an event type that it takes
    committed: dict[str, dict[int, int]]
    ends: dict[int, tuple[int, int]]

    def parameters(self) -> dict[str, object]:
        positions = [(group, *place) for group, offsets in self.committed.items() for place in offsets.items()]
        return {
            "asked_at": self.asked_at,
            "takers": [group for group, _ in self.takes],
            "types": [event_type for _, event_type in self.takes],
            "partitions": list(self.ends),
            "firsts": [first for first, _ in self.ends.values()],
            "nexts": [end for _, end in self.ends.values()],
            "consumers": [consumer for consumer, _, _ in positions],
            "numbers": [number for _, number, _ in positions],
            "positions": [position for _, _, position in positions],
        }


class Search:
    """Finds missing rows. Memory: a page of rows, and the ids of all dead letters once a row seems missing."""

    def __init__(self, settings: Settings, connection: Connection) -> None:
        """Read the groups' and the topic's offsets. Raises UnreachableError; BrewError where the topic is missing."""
        self._settings = settings
        self._connection = connection
        with open_admin(settings) as admin:
            # First committed offsets, whose events have durable dedup rows by now; last the topic's ends, which are
            # behind all rows published until `now`.
            downstreams = registry.configured(settings)
            committed = {
                each.group: admin.committed(registry.kafka_group(settings, each), settings.topic)
                for each in downstreams
            }
            takes = [(each.group, event_type) for each in downstreams for event_type in each.events]
            (asked_at,) = connection.execute(queries["now"]).fetchone() or (None,)
            self._topic = _Topic(asked_at, takes, committed, admin.ends(settings.topic))
        self._apart = homes.apart(settings)
        self._letters: frozenset[tuple[str, int]] | None = None

    def pages(self) -> Iterator[list[Missing]]:
        """Yield the missing rows of each page of the outbox, in the order of their ids; a page may have none."""
        parameters = {**self._topic.parameters(), "topic": self._settings.topic, "limit": _PAGE}
        after: int | None = 0
        while after is not None:
            rows = self._connection.execute(queries["missing_rows"], {**parameters, "after": after}).fetchall()
            after = rows[0][0]
            missing = [Missing(*row[1:]) for row in rows if row[1] is not None]
            for home in self._apart if missing else ():
                done = _done(home, [row.id for row in missing if row.group in home.groups])
                missing = [row for row in missing if (row.group, row.id) not in done]
            if missing:
                buried = self._buried()
                missing = [row for row in missing if (row.group, row.id) not in buried]
            yield missing

    def _buried(self) -> frozenset[tuple[str, int]]:
        """Return group and outbox id of all dead letters: those rows are not missing, as a letter can be redriven."""
        if self._letters is None:
            with open_dead_letters(self._settings, self._connection) as letters:
                named = [
                    (letter.group, dict(letter.headers).get("outbox-id", b""))
                    for letter in letters.find(Filter(), settled=True)
                ]
            # A letter has the group's name in Kafka, a dedup row the name without the prefix.
            own = {
                registry.kafka_group(self._settings, each): each.group for each in registry.configured(self._settings)
            }
            self._letters = frozenset((own.get(group, group), int(name)) for group, name in named if name.isdigit())
        return self._letters


def _done(home: Home, ids: Sequence[int]) -> set[tuple[str, int]]:
    """Return group and outbox id of those rows that are processed or parked in a downstream's own database."""
    if not ids:
        return set()
    with homes.connect(home) as connection:
        return set(connection.execute(queries["done_rows"], {"groups": home.groups, "ids": ids}))


def again(connection: Connection, ids: Sequence[int]) -> list[int]:
    """Put published rows back into the queue; return the ids of those that were published.

    Publishers take them at their next fetch, in the order of their ids.
    """
    return sorted(row_id for (row_id,) in connection.execute(queries["republish_rows"], {"ids": list(ids)}))
