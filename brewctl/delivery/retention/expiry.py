"""Deletes old rows in small batches: idempotency keys, settled parked events and dead letters, redeliveries.

Each batch is a short transaction of its own, so that no Create waits long for it and VACUUM can keep up.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from brewctl.config import Settings
from brewctl.delivery.broker import open_admin
from brewctl.delivery.database import BoundedConnection
from brewctl.delivery.schema import homes
from brewctl.errors import UnreachableError
from brewctl.sql import queries, retention_queries

_BATCH = 1000


@dataclass
class Forgotten:
    """How many rows of each kind were deleted."""

    keys: int = 0
    parked: int = 0
    letters: int = 0
    redeliveries: int = 0

    def __str__(self) -> str:
        counted = {
            "idempotency keys": self.keys,
            "settled parked events": self.parked,
            "settled dead letters": self.letters,
            "repeats": self.redeliveries,
        }
        return ", ".join(f"{count} {what}" for what, count in counted.items() if count) or "nothing"


def forget(
    settings: Settings,
    connection: BoundedConnection,
    *,
    keys_for: timedelta | None,
    settled_for: timedelta | None,
    between: Callable[[], None] = lambda: None,
) -> Forgotten:
    """Delete what is older than these times (None: nothing); return how much. `between`: called after each batch.

    A Create with a deleted idempotency key makes a new order. A home that is away is left to a later run. An error that
    `between` raises ends the work between two batches.
    """
    found = connection.execute(queries["now"]).fetchone()
    assert found is not None
    now: datetime = found[0]
    forgotten = Forgotten()
    if keys_for is not None:
        forgotten.keys = _keys(connection, now - keys_for, between)
    if settled_for is not None:
        before = now - settled_for
        with open_admin(settings) as admin:
            there = settings.dead_letter_topic in admin.topics()
            ends = admin.ends(settings.dead_letter_topic) if there else {}
        edges = {"partitions": list(ends), "firsts": [first for first, _ in ends.values()]}
        asked = {"before": before, "topic": settings.dead_letter_topic, **edges}
        forgotten.letters = _batches(connection, "forget_letters", asked, between)
        for home in homes.of(settings):
            try:
                with homes.connect(home, connection, name="retention") as own:
                    forgotten.parked += _batches(own, "forget_parked", {"before": before}, between)
                    if home.apart:  # in the story's database replicas delete redeliveries
                        forgotten.redeliveries += _batches(own, "forget_redeliveries", {}, between)
            except UnreachableError:
                continue
    return forgotten


def _keys(connection: BoundedConnection, before: datetime, between: Callable[[], None]) -> int:
    """Delete keys, from the oldest order with a key on: an order that was locked in the run before is found again."""
    count = 0
    (since,) = connection.execute(retention_queries["some_key"], {"before": before}).fetchone() or (None,)
    while since is not None:
        asked = {"since": since, "before": before, "limit": _BATCH}
        done, reached = connection.execute(retention_queries["forget_keys"], asked).fetchone() or (0, None)
        count += done
        since = reached
        between()
        if done < _BATCH:
            break
    (left,) = connection.execute(retention_queries["some_key"], {"before": before}).fetchone() or (None,)
    connection.execute(retention_queries["keys_forgotten"], {"until": left or before})
    return count


def _batches(
    connection: BoundedConnection, query: str, asked: Mapping[str, object], between: Callable[[], None]
) -> int:
    count = done = 0
    while True:
        (done,) = connection.execute(retention_queries[query], {**asked, "limit": _BATCH}).fetchone() or (0,)
        count += done
        between()
        if done < _BATCH:
            return int(count)
