"""Reads and writes `waiting_events`: the events that wait for the lanes of a downstream.

taken     the dedup row and the waiting row are one commit: `Intake`, for `inbox`
leased    a lane calls the handler, and the lease is renewed meanwhile: `WaitingEvents`, for `lanes` and `lane_call`
handled   the handler's writes through `tx`, and the end of the waiting row, are one commit;
          after a failure the event is put back for another try, or parked with the later events of its key
"""

import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, LiteralString

from psycopg.rows import class_row

from brewctl.delivery.broker import Record
from brewctl.delivery.database import BoundedConnection
from brewctl.delivery.downstream import Downstream, Later
from brewctl.delivery.events import Event
from brewctl.delivery.inbox import parking
from brewctl.delivery.inbox.batch import ReadEvent
from brewctl.delivery.inbox.effects import KeysParkedError, array, parameters, taking
from brewctl.delivery.inbox.stored_event import StoredEvent, dumped
from brewctl.errors import BrewError
from brewctl.limits import Limits
from brewctl.sql import queries

# The columns of a waiting row besides the ids: those of the event, and those of the record.
_OF_EVENT = {"key": "text", "seq": "bigint", "type": "text", "value": "bytea", "headers": "text"}
_OF_RECORD = {"topic": "text", "partition": "integer", "offset": "bigint", "written_ms": "bigint"}
_COLUMNS = {**_OF_EVENT, **_OF_RECORD, "place": "integer"}
_ROOM_AGAIN_S = 1.0  # when to count again after too many events waited
_KEYS_AT_A_TIME = 100
_LOOK_ROWS = 256


class LeaseLostError(Exception):
    """A lease ran out during a call: another process has leased the event, or had."""


@dataclass(frozen=True, slots=True)
class WaitingEvent(StoredEvent):
    """A leased waiting event."""

    lease: uuid.UUID
    again: bool  # whether it was put back before


class Intake:
    """The effect of a downstream with lanes: stores fresh events as waiting rows. Not for two threads at a time."""

    def __init__(self, consumer: str, node: str, *, most: int) -> None:
        self._consumer, self._node, self._most = consumer, node, most
        self._text = f"{taking(_COLUMNS)}, brew_effect AS (\n{queries['take_waiting']}\n)\n{queries['taken']}"
        self._records: dict[tuple[int, str | None], Record] = {}  # the records of the events that are taken next
        self._waiting = most  # an upper bound: the rows at the last count, and those taken since
        self.trouble = ""

    def expect(self, connection: BoundedConnection, part: Sequence[ReadEvent]) -> None:
        """Note the events that are taken next. Raises Later where too many wait already."""
        if self._waiting + len(part) > self._most:
            self._waiting, _ = count(connection, self._consumer, most=self._most)
            if self._waiting and self._waiting + len(part) > self._most:
                self.trouble = f"{self._waiting} events wait for its lanes: it takes no more until some are done"
                raise Later(_ROOM_AGAIN_S)
        self.trouble = ""
        self._records = {(event.outbox_id, event.id): record for record, event in part}

    def __call__(
        self, connection: BoundedConnection, part: Sequence[Event[Any]], repeats: Counter[int], *, looked: bool = False
    ) -> int:
        """Take events: see `effects.Effect`."""
        records = [self._records[event.outbox_id, event.id] for event in part]
        asked = parameters(self._consumer, self._node, part, repeats, looked=looked)
        columns: dict[str, list[Any]] = {
            "key": [event.key for event in part],
            "seq": [event.seq for event in part],
            "type": [event.type for event in part],
            "value": [event.raw for event in part],
            "headers": [dumped(record.headers) for record in records],
            "topic": [record.topic for record in records],
            "partition": [record.partition for record in records],
            "offset": [record.offset for record in records],
            "written_ms": [record.timestamp_ms for record in records],
            "place": list(range(len(part))),
        }
        asked |= {f"column_{name}": array(_COLUMNS[name], values) for name, values in columns.items()}
        fresh, there = connection.execute(self._text, asked).fetchone() or (0, False)
        if there:
            raise KeysParkedError
        self._waiting += fresh
        return int(fresh)


class WaitingEvents:
    """The waiting events of one consumer, for the lanes of one node. Thread-safe, but for `lease`."""

    def __init__(self, consumer: str, node: str, limits: Limits) -> None:
        self._consumer, self._node = consumer, node
        self._lasts_s = limits.session_s
        # How many of the oldest rows a lease looks at: few, unless many rows of the same keys stand first.
        self._look, self._most = _LOOK_ROWS, 2 * limits.waiting_events

    def lease(
        self, connection: BoundedConnection, *, limit: int, in_hand: Collection[int], again: bool
    ) -> list[WaitingEvent]:
        """Lease the oldest event of up to `limit` keys each: of those that were put back (`again`), or of new ones."""
        if again:
            return self._lease(connection, queries["lease_again"], limit, in_hand)
        found = self._lease(connection, queries["lease_waiting"], limit, in_hand)
        if len(found) == limit:
            self._look = max(_LOOK_ROWS, self._look // 2)
        elif self._look < self._most:
            self._look = self._most
            held = [*in_hand, *(each.id for each in found)]
            found += self._lease(connection, queries["lease_waiting"], limit - len(found), held)
        return found

    def _lease(
        self, connection: BoundedConnection, query: LiteralString, limit: int, in_hand: Collection[int]
    ) -> list[WaitingEvent]:
        asked = {
            "look": self._look,
            "consumer": self._consumer,
            "node": self._node,
            "limit": limit,
            "in_hand": list(in_hand),
            "lease": uuid.uuid4(),
            "lasts_s": self._lasts_s,
        }
        with connection.cursor(row_factory=class_row(WaitingEvent)) as cursor:
            return sorted(cursor.execute(query, asked), key=attrgetter("id"))

    def renew(self, connection: BoundedConnection, held: Collection[WaitingEvent]) -> set[int]:
        """Renew leases. Return the ids of those that this node still holds."""
        asked = {**_leases(held), "lasts_s": self._lasts_s}
        return {number for (number,) in connection.execute(queries["renew_leases"], asked)}

    def give_back(self, connection: BoundedConnection, held: Collection[WaitingEvent]) -> None:
        """End leases, so that another process may lease these events at once."""
        connection.execute(queries["give_leases_back"], _leases(held))

    def finish(self, connection: BoundedConnection, waiting: WaitingEvent) -> None:
        """Delete the row of a handled event, in the caller's transaction if there is one. Raises LeaseLostError."""
        asked = {"id": waiting.id, "lease": waiting.lease}
        if connection.execute(queries["finish_waiting"], asked).fetchone() != (1,):
            raise LeaseLostError

    def put_back(
        self,
        connection: BoundedConnection,
        waiting: WaitingEvent,
        *,
        pause_s: float,
        failure: str | None,
        counted: bool,
    ) -> None:
        """Have an event tried again after `pause_s` seconds. Raises LeaseLostError.

        `failure`: why the try failed. `counted`: whether it counts as one of the event's tries.
        """
        asked = {
            "id": waiting.id,
            "lease": waiting.lease,
            "pause_s": pause_s,
            "failure": failure and failure.replace("\0", "?"),
            "counted": int(counted),
        }
        if not connection.execute(queries["put_back"], asked).fetchone():
            raise LeaseLostError

    def park(self, connection: BoundedConnection, waiting: WaitingEvent, reason: str, *, attempts: int) -> int:
        """Park an event, and the waiting events of its key. Return how many were parked. Raises LeaseLostError."""
        with connection.transaction():
            parking.lock(connection, self._consumer, [waiting.key])
            if not connection.execute(queries["hold_waiting"], {"id": waiting.id, "lease": waiting.lease}).fetchone():
                raise LeaseLostError
            return self._park(connection, waiting.key, number=waiting.id, reason=reason, attempts=attempts)

    def park_stragglers(self, connection: BoundedConnection) -> int:
        """Park waiting events whose key has a parked event: they were taken while that one was parked."""
        asked = {"consumer": self._consumer, "limit": _KEYS_AT_A_TIME}
        parked = 0
        for (key,) in connection.execute(queries["keys_behind_parked"], asked).fetchall():
            with connection.transaction():
                named = {"consumer": self._consumer, "key": key}
                # A redrive holds the key's lock while its handler runs: then the next turn parks them.
                locked = connection.execute(queries["try_lock_key"], named).fetchone() == (True,)
                if locked and connection.execute(queries["parked_keys"], {**named, "keys": [key]}).fetchone():
                    parked += self._park(connection, key)
        return parked

    def _park(
        self, connection: BoundedConnection, key: str, *, number: int | None = None, reason: str = "", attempts: int = 0
    ) -> int:
        asked = {"id": number, "reason": reason.replace("\0", "?"), "attempts": attempts}
        rows = connection.execute(queries["park_waiting"], {"consumer": self._consumer, "key": key, **asked})
        return len(rows.fetchall())


def require_none_waiting(connection: BoundedConnection, consumer: str) -> None:
    """Raise BrewError if events wait for the lanes of a downstream that has none now: they would wait for ever."""
    if connection.execute(queries["any_waiting"], {"consumer": consumer}).fetchone() == (True,):
        raise BrewError(
            f"downstream {consumer} has no lanes, and events that wait for them",
            hint="run it as it was, with lanes, until none waits: `brewctl doctor` shows how many do",
        )


def note_lanes(connection: BoundedConnection, downstream: Downstream, name: str) -> None:
    """Store whether a downstream has lanes, as its node starts; `name`: its MODULE:NAME. `without_lanes` reads it."""
    asked = {"consumer": downstream.group, "name": name, "lanes": bool(downstream.lanes)}
    connection.execute(queries["note_lanes"], asked)


def without_lanes(connection: BoundedConnection, downstreams: Iterable[Downstream]) -> list[str]:
    """Return the groups of those downstreams that have no lanes here, and whose nodes run with lanes.

    Their nodes have another configuration: a redrive from here would not run the handler that they run.
    """
    groups = [each.group for each in downstreams if not each.lanes]
    return [group for (group,) in connection.execute(queries["noted_lanes"], {"consumers": groups})]


def count(connection: BoundedConnection, consumer: str, *, most: int) -> tuple[int, float | None]:
    """Count a consumer's waiting events, up to `most`. Return also how many seconds the oldest has waited."""
    found = connection.execute(queries["count_waiting"], {"consumer": consumer, "most": most}).fetchone()
    return found or (0, None)


def _leases(held: Collection[WaitingEvent]) -> dict[LiteralString, list[Any]]:
    return {"ids": [each.id for each in held], "leases": [each.lease for each in held]}
