"""Parks an event whose effect alone keeps failing, with later events of its key, and redrives or drops them.

    fails ──park──► parked_events, with its record ──redrive──► the effects of all parked events of its key, in order
                                                       └──drop──► no effect: it counts as processed

An event is parked in the transaction that would have had its effect. Park, redrive and drop lock the key: a redrive
applies the whole parked sequence, and no other event of the key has its effect in between. `inbox` and `lane_call`
park, and `brewctl dlq` redrives and drops.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from psycopg.rows import class_row

from brewctl.delivery.database import BoundedConnection
from brewctl.delivery.database.lent_transaction import HandlerError
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.events import Event
from brewctl.delivery.inbox.batch import ReadEvent
from brewctl.delivery.inbox.effects import Effect, distinct, effect_of
from brewctl.delivery.inbox.failures import reason_of
from brewctl.delivery.inbox.stored_event import StoredEvent, dumped
from brewctl.delivery.schema import no_partition
from brewctl.errors import BrewError
from brewctl.sql import queries

_AFTER_IT = "it is parked as before; redrive the others by their ids"


class Parking:
    """Parks events for one consumer's inbox. Not for two threads at a time."""

    def __init__(self, consumer: str) -> None:
        self._consumer = consumer
        self.used = False  # whether events may be parked: then the keys of each batch are looked up

    def park(self, connection: BoundedConnection, read: ReadEvent, reason: str, *, attempts: int) -> int:
        """Commit a failed event as parked. Return 1, or 0 if it has had its effect, or is parked already."""
        with connection.transaction():
            lock(connection, self._consumer, [read[1].key])
            self.used = True
            return len(self._insert(connection, [read], reason, attempts=attempts))

    def park_behind(self, connection: BoundedConnection, part: Sequence[ReadEvent]) -> tuple[list[Event[Any]], int]:
        """Park the events whose keys have parked events, in the caller's transaction.

        Return the events of other keys, and how many were parked now: an event that is parked already, or has had its
        effect, is in neither.
        """
        keys = self._parked(connection, sorted({event.key for _, event in part}))
        if keys:
            # A redrive holds the key's lock: look again with the lock held.
            lock(connection, self._consumer, sorted(keys))
            keys = self._parked(connection, sorted(keys))
        else:
            (self.used,) = connection.execute(queries["parks"], {"consumer": self._consumer}).fetchone() or (False,)
        behind = [read for read in part if read[1].key in keys]
        parked = self._insert(connection, behind, "waits behind an event of its key", attempts=0) if behind else []
        return [event for _, event in part if event.key not in keys], len(parked)

    def _parked(self, connection: BoundedConnection, keys: Sequence[str]) -> set[str]:
        rows = connection.execute(queries["parked_keys"], {"consumer": self._consumer, "keys": list(keys)})
        return {key for (key,) in rows}

    def _insert(
        self, connection: BoundedConnection, part: Sequence[ReadEvent], reason: str, *, attempts: int
    ) -> list[int]:
        columns = {
            "keys": [event.key for _, event in part],
            "seqs": [event.seq for _, event in part],
            "outbox_ids": [event.outbox_id for _, event in part],
            "event_ids": [event.id for _, event in part],
            "event_types": [event.type for _, event in part],
            "topics": [record.topic for record, _ in part],
            "partitions": [record.partition for record, _ in part],
            "offsets": [record.offset for record, _ in part],
            "written": [record.timestamp_ms for record, _ in part],
            "values": [event.raw for _, event in part],
            "headers": [dumped(record.headers) for record, _ in part],
        }
        said = {"consumer": self._consumer, "reason": reason.replace("\0", "?"), "attempts": attempts}
        parked = [outbox_id for (outbox_id,) in connection.execute(queries["park"], {**columns, **said})]
        if len(parked) < len(part):  # the others are parked already, but perhaps not yet on the standby
            connection.execute(queries["await_replication"])
        return parked


def name(number: int, group: str, *, apart: bool) -> str:
    """Return a parked event's name in commands. `apart`: with its group, as its database is not the story's."""
    return f"p{number}@{group}" if apart else f"p{number}"


def lock(connection: BoundedConnection, consumer: str, keys: Sequence[str]) -> None:
    """Lock keys of a consumer until the end of the transaction."""
    connection.execute(queries["lock_keys"], {"consumer": consumer, "keys": list(keys)})


@dataclass(frozen=True, slots=True)
class ParkedEvent(StoredEvent):
    """A parked event."""

    group: str
    seq: int | None
    reason: str
    parked_at: datetime
    outcome: str  # redriven, dropped, or "": still parked
    apart: bool = False  # its database is not the story's

    @property
    def name(self) -> str:
        """Its name in commands."""
        return name(self.id, self.group, apart=self.apart)


@dataclass
class ParkingResult:
    """The events that were redriven or dropped, and those that stay parked."""

    done: list[ParkedEvent] = field(default_factory=list)
    refused: list[tuple[ParkedEvent, str]] = field(default_factory=list)  # the first event of a key, and the reason

    def add(self, other: "ParkingResult", *, apart: bool) -> None:
        """Add the result of another database; `apart`: one that is not the story's."""
        self.done += [replace(each, apart=apart) for each in other.done]
        self.refused += [(replace(each, apart=apart), why) for each, why in other.refused]


def find(
    connection: BoundedConnection,
    groups: Iterable[str],
    *,
    ids: Sequence[int] | None = None,
    key: str | None = None,
    settled: bool = False,
) -> list[ParkedEvent]:
    """Read parked events, oldest first; `settled`: with those that were redriven or dropped."""
    asked = {
        "consumers": list(groups),
        "ids": None if ids is None else list(ids),
        "key": key,
        "open": not settled,
    }
    with connection.cursor(row_factory=class_row(ParkedEvent)) as cursor:
        return cursor.execute(queries["parked_events"], asked).fetchall()


def redrive(connection: BoundedConnection, downstream: Downstream, keys: Iterable[str], *, node: str) -> ParkingResult:
    """Apply the parked events of each key, in order, by the downstream's own effect: one transaction for each key.

    A key whose effect fails stays parked as it was. An event that has had its effect is not applied again. Raises
    psycopg.Error where the server is away, BrewError where a handler lost its session: earlier keys stay redriven.
    """
    with downstream.alive(node):
        return _redrive(connection, downstream, keys, node=node)


def _redrive(connection: BoundedConnection, downstream: Downstream, keys: Iterable[str], *, node: str) -> ParkingResult:
    result = ParkingResult()
    effect = effect_of(downstream, node=node)
    for key in keys:
        waiting: list[ParkedEvent] = []
        try:
            parked = find(connection, [downstream.group], key=key)
            if refused := _make_room(connection, parked):
                result.refused += [(each, refused[each.outbox_id]) for each in parked if each.outbox_id in refused][:1]
                continue
            with connection.transaction():
                lock(connection, downstream.group, [key])
                waiting = find(connection, [downstream.group], key=key)
                _apply(connection, effect, [parked.event(downstream) for parked in waiting])
                _settle(connection, waiting, "redriven")
        except Exception as error:
            if connection.closed and isinstance(error, HandlerError):  # held for too long, or left busy
                raise BrewError(f"the redrive of {key} failed: {reason_of(error)}", hint=_AFTER_IT) from error
            if connection.closed or not waiting:
                raise
            result.refused.append((waiting[0], reason_of(error)))
        else:
            result.done += waiting
    return result


def drop(connection: BoundedConnection, parked: Sequence[ParkedEvent]) -> ParkingResult:
    """Count parked events as processed, without an effect. Raises psycopg.Error."""
    result = ParkingResult()
    refused = _make_room(connection, parked)
    for each in parked:
        with connection.transaction():
            lock(connection, each.group, [each.key])
            if found := find(connection, [each.group], ids=[each.id]):
                if each.outbox_id not in refused:
                    connection.execute(queries["count_as_processed"], {"ids": [each.id]})
                _settle(connection, found, "dropped")
                result.done += found
    return result


def _make_room(connection: BoundedConnection, parked: Sequence[ParkedEvent]) -> dict[int, str]:
    """Make the partitions that dedup rows of parked events lack. Return outbox ids that may have none, and why."""
    ids = no_partition.without(connection, [each.outbox_id for each in parked])
    return {each: why for each in ids if (why := no_partition.make(connection, "processed_events", each))}


def _apply(connection: BoundedConnection, effect: Effect, sequence: Sequence[Event[Any]]) -> None:
    for part in distinct(sequence):
        effect(connection, part, Counter(), looked=True)


def _settle(connection: BoundedConnection, parked: Sequence[ParkedEvent], outcome: str) -> None:
    connection.execute(queries["settle_parked"], {"outcome": outcome, "ids": [each.id for each in parked]})
