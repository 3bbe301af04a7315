"""The topic against the database, a batch at a time, so that memory stays flat.

Each record is compared with its outbox row and its order at once. What only the whole set shows (what is missing,
twice there, in the wrong order) is asked of PostgreSQL, which gets a row in `seen` for each record.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from brewctl.config import Settings
from brewctl.delivery import events
from brewctl.delivery.broker import Record
from brewctl.delivery.database import Connection
from brewctl.delivery.events import Event, Headers
from brewctl.proto.orders_pb2 import OrderCreated, OrderStatus
from brewctl.sql import verify_queries
from brewctl.verify.result import Check

_SHOWN_CHARACTERS = 120
_FIELDS = ("order_id", "tenant_id", "customer_id", "amount_cents", "currency", "status", "created_at")
_Fields = tuple[str, str, str, int, str, str, int]


class _Row(NamedTuple):
    outbox_id: int
    aggregate_id: str
    topic: str
    payload: bytes


class Records:
    """Takes every record of the topic. `snapshot` also has the table `seen`; `fresh` sees what is younger."""

    def __init__(self, settings: Settings, snapshot: Connection, fresh: Connection) -> None:
        self._topic = settings.topic
        self._snapshot = snapshot
        self._fresh = fresh
        self.strangers = Check("strangers", "every event has its outbox row")
        self.key = Check("wrong-key", "its key is the row's aggregate")
        self.headers = Check("wrong-headers", "its headers are the contract's seven")
        self.payload = Check("wrong-payload", "its value is the row's payload")
        self.order = Check("unlike-order", "its payload says what the order says")

    @property
    def checks(self) -> list[Check]:
        """What is asked of each record."""
        return [self.strangers, self.key, self.headers, self.payload, self.order]

    def take(self, records: Sequence[Record]) -> None:
        """Compare a batch, and note it in `seen`."""
        found: list[tuple[Record, Event]] = []
        with self._snapshot.cursor().copy(verify_queries["copy_seen"]) as copy:
            for record in records:
                event, unreadable = None, False
                try:
                    event = events.read_record(record.value, record.headers)
                except events.UnreadableError:
                    unreadable = True
                if event:
                    found.append((record, event))
                copy.write_row((
                    record.partition,
                    record.offset,
                    event.outbox_id if event else None,
                    unreadable,
                    hash(record.key),
                    frame(record.key, record.headers),
                    hash(record.value or b""),
                    hash(dict(record.headers).get("publisher-node")),
                ))  # fmt: skip
        rows = self._rows({event.outbox_id for _, event in found})
        orders = self._orders({row.aggregate_id for row in rows.values()})
        for record, event in found:
            row = rows.get(event.outbox_id)
            self._compare(record, event, row, orders.get(row.aggregate_id) if row else None)

    def _rows(self, ids: set[int]) -> dict[int, _Row]:
        query = verify_queries["outbox_rows"]
        rows = {row[0]: _Row(*row) for row in self._snapshot.execute(query, {"ids": list(ids)}, binary=True)}
        if young := ids - rows.keys():
            rows |= {row[0]: _Row(*row) for row in self._fresh.execute(query, {"ids": list(young)}, binary=True)}
        return rows

    def _orders(self, aggregates: Collection[str]) -> dict[str, _Fields]:
        ids = {aggregate: order_of(aggregate) for aggregate in aggregates}
        wanted = {order_id for order_id in ids.values() if order_id}
        query = verify_queries["orders"]
        orders: dict[str, _Fields] = {row[0]: row for row in self._snapshot.execute(query, {"ids": list(wanted)})}
        if young := wanted - orders.keys():
            orders |= {row[0]: row for row in self._fresh.execute(query, {"ids": list(young)})}
        return {aggregate: orders[order_id] for aggregate, order_id in ids.items() if order_id in orders}

    def _compare(self, record: Record, event: Event, row: _Row | None, order: _Fields | None) -> None:
        where = f"outbox {event.outbox_id} at {record.partition}@{record.offset}"
        self.strangers.examined += 1
        if row is None or row.topic != self._topic:
            self.strangers.fail(f"{where} is not in the outbox" if row is None else f"{where} is for topic {row.topic}")
            return
        for check in (self.key, self.headers, self.payload):
            check.examined += 1
        if record.key != row.aggregate_id.encode():
            self.key.fail(f"{where}: key is {_shown(record.key)}, not {row.aggregate_id}")
        if difference := _headers_differ(record.headers, row, event.order):
            self.headers.fail(f"{where}: {difference}")
        if record.value != row.payload:
            self.payload.fail(f"{where}: its {len(record.value or b'')} bytes are not the row's {len(row.payload)}")
        if order is None:  # a row without an order is another check's
            return
        self.order.examined += 1
        said = _fields(event.order)
        if said != order:
            differing = [name for name, this, that in zip(_FIELDS, said, order, strict=True) if this != that]
            self.order.fail(f"{where}: {', '.join(differing)} not as in order {order[0]}")


def frame(key: bytes | None, headers: Headers) -> int:
    """Return a fingerprint of a record's key and headers, as `hash` is one of bytes: good within this process."""
    return hash((key, *headers))


def order_of(aggregate_id: str) -> str | None:
    """Return the order's id in an aggregate's name, as PostgreSQL writes it; None where there is none."""
    order_id = aggregate_id.removeprefix(events.aggregate_id(""))
    return order_id.lower() if order_id != aggregate_id and events.is_uuid(order_id) else None


def _headers_differ(headers: Headers, row: _Row, order: OrderCreated) -> str:
    node = dict(headers).get("publisher-node", b"").decode(errors="replace")
    expected = events.headers_for(row.outbox_id, row.aggregate_id, order, node=node)
    if headers == expected and node:
        return ""
    names = [name for name, _ in headers]
    if names != [name for name, _ in expected]:
        return f"its headers are {_shown(', '.join(names))}"
    for (name, value), (_, wanted) in zip(headers, expected, strict=True):
        if value != wanted:
            return f"{name} is {_shown(value)}, not {_shown(wanted)}"
    return "publisher-node is empty"


def _fields(order: OrderCreated) -> _Fields:
    status = OrderStatus.Name(order.status) if order.status in OrderStatus.values() else str(order.status)
    created_us = order.created_at.seconds * 1_000_000 + order.created_at.nanos // 1000
    return (
        order.order_id,
        order.tenant_id,
        order.customer_id,
        order.amount_cents,
        order.currency,
        status,
        created_us,
    )


def _shown(value: bytes | str | None) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
