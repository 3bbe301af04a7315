"""Publishing again: rows whose records some group never had, and never gets any more.

Retention removes records before a group has read them, or a topic is truncated or made anew: the group goes on at the
first record there is, without lag, and effects are missing. The rows are still in the outbox. A row that is published
again comes behind newer events of its key; a group that had it knows it by its outbox id, and skips it.
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

# Rows looked at by one statement.
_PAGE = 5000


@dataclass(frozen=True, slots=True)
class Missing:
    """A published row that a group never gets."""

    id: int
    group: str
    partition: int
    offset: int
    why: str  # "removed" before the first record, "cut off" behind the last one, or "passed" by the group


@dataclass
class Summary:
    """How many rows are missing, and to whom and why. A row that two groups lack is one row."""

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
    """Where the topic and its groups stood. Asked in an order in which no row that is on its way looks missing."""

    asked_at: datetime
    takes: Sequence[tuple[str, str]]  # a downstream's group, and a type of event that it takes
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
    """Looks for missing rows. Memory: a page of rows, and the ids of the dead letters once a row seems missing."""

    def __init__(self, settings: Settings, connection: Connection) -> None:
        """Ask Kafka where the groups and the topic are. Raises UnreachableError, BrewError without the topic."""
        self._settings = settings
        self._connection = connection
        with open_admin(settings) as admin:
            # What a group has passed is durable before it is asked; what is published by now is before the end.
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
        """Yield the missing rows, in the order of their ids, a page of rows looked at each; a page may have none."""
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
        """Return the groups and rows of all dead letters: what becomes of those is decided there."""
        if self._letters is None:
            with open_dead_letters(self._settings, self._connection) as letters:
                named = [
                    (letter.group, dict(letter.headers).get("outbox-id", b""))
                    for letter in letters.find(Filter(), settled=True)
                ]
            # A letter names the group as Kafka does, a dedup row without the prefix.
            own = {
                registry.kafka_group(self._settings, each): each.group for each in registry.configured(self._settings)
            }
            self._letters = frozenset((own.get(group, group), int(name)) for group, name in named if name.isdigit())
        return self._letters


def _done(home: Home, ids: Sequence[int]) -> set[tuple[str, int]]:
    """Return the groups and rows of those that are done in another database than the story's."""
    if not ids:
        return set()
    with homes.connect(home) as connection:
        return set(connection.execute(queries["done_rows"], {"groups": home.groups, "ids": ids}))


def again(connection: Connection, ids: Sequence[int]) -> list[int]:
    """Put published rows back into the queue; return those that were published.

    Publishers take them at their next look, in the order of their ids.
    """
    return sorted(row_id for (row_id,) in connection.execute(queries["republish_rows"], {"ids": list(ids)}))
