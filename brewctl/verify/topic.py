"""Compare the topic with the database, a batch at a time, so that memory does not grow with the topic.

Each record is compared with its outbox row and its order at once. What is compared of those rows never changes once it
is committed, so the present rows will do. Missing, repeated and misordered records are found in the end by queries over
the table `seen`, which gets a row for each record.
"""

from collections.abc import Collection, Sequence
from typing import Any

from brewctl.config import Settings
from brewctl.delivery.broker import Record
from brewctl.delivery.broker.partitions import partition_for
from brewctl.delivery.database import BoundedConnection
from brewctl.proto.orders_pb2 import OrderCreated, OrderStatus
from brewctl.verify import contract
from brewctl.verify.contract import Headers, Reading, Row, Said, shown
from brewctl.verify.result import Check
from brewctl.verify.workspace import Workspace

_Order = dict[str, Any]  # an order's columns
_WHOLE_HASH = 2**31


class Records:
    """Compares each record with its row, and writes it to `seen`. `present` reads rows as they are now.

    `hashed`: store the hash of each key too, which tells the partition that a key belongs to.
    """

    def __init__(self, settings: Settings, workspace: Workspace, present: BoundedConnection, *, hashed: bool) -> None:
        self._topic = settings.topic
        self._workspace = workspace
        self._present = present
        self._hashed = hashed
        self.older_headers = 0
        self.strangers = Check("strangers", "every event has its outbox row")
        self.key = Check("wrong-key", "its key is the row's aggregate")
        self.headers = Check("wrong-headers", "its headers are the contract's, in their order")
        self.payload = Check("wrong-payload", "its value is the row's payload")
        self.order = Check("unlike-order", "its payload says what the order says")

    @property
    def checks(self) -> list[Check]:
        """The checks that each record goes through."""
        return [self.strangers, self.key, self.headers, self.payload, self.order]

    def take(self, records: Sequence[Record]) -> None:
        """Compare a batch of records, and write it to `seen`."""
        found = [(record, contract.read(record.key, record.value, record.headers)) for record in records]
        rows = self._rows({reading.outbox_id for _, reading in found if reading.outbox_id})
        orders = self._orders({row.aggregate_id for row in rows.values()})
        with self._workspace.copy("copy_seen") as copy:
            for record, reading in found:
                row = rows.get(reading.outbox_id or 0)
                if row and reading.event_id and row.event_id and reading.event_id != row.event_id:
                    known = None  # another event's id, used again
                elif row or reading.said:
                    known = reading.outbox_id
                else:
                    known = None  # an event of another service, whose outbox is elsewhere
                copy.write_row((
                    record.partition,
                    record.offset,
                    record.timestamp_ms,
                    known,
                    reading.type if reading.type is None or "\0" not in reading.type else "",
                    reading.unreadable,
                    hash(record.key),
                    partition_for(record.key, _WHOLE_HASH) if self._hashed and record.key is not None else None,
                    frame(record.key, record.headers),
                    hash(record.value or b""),
                    hash(dict(record.headers).get("publisher-node")),
                ))  # fmt: skip
                if reading.said or (row and known):
                    self._compare(record, reading, row, orders.get(row.aggregate_id) if row else None)

    def _rows(self, ids: Collection[int]) -> dict[int, Row]:
        rows = self._workspace.look(self._present, "outbox_rows", ids=list(ids))
        return {row[0]: Row(*row) for row in rows}

    def _orders(self, aggregates: Collection[str]) -> dict[str, _Order]:
        ids = {aggregate: contract.order_of(aggregate) for aggregate in aggregates}
        wanted = [order_id for order_id in ids.values() if order_id]
        rows = self._workspace.look(self._present, "orders", ids=wanted)
        names = [column.name for column in rows.description or ()]
        found: dict[str, _Order] = {row[0]: dict(zip(names, row, strict=True)) for row in rows}
        return {aggregate: found[order_id] for aggregate, order_id in ids.items() if order_id in found}

    def _compare(self, record: Record, reading: Reading, row: Row | None, order: _Order | None) -> None:
        where = f"outbox {reading.outbox_id} at {record.partition}@{record.offset}"
        self.strangers.examined += 1
        if row is None or row.topic != self._topic:
            self.strangers.fail(f"{where} is not in the outbox" if row is None else f"{where} is for topic {row.topic}")
            return
        if reading.event_id and row.event_id and reading.event_id != row.event_id:
            self.strangers.fail(
                f"{where} is another event: its event id is {reading.event_id}, the row's {row.event_id}"
            )
            return
        for check in (self.key, self.headers, self.payload):
            check.examined += 1
        if record.key != row.aggregate_id.encode():
            self.key.fail(f"{where}: key is {shown(record.key)}, not {row.aggregate_id}")
        if difference := contract.headers_differ(record, row, order["tenant_id"] if order else None):
            self.headers.fail(f"{where}: {difference}")
        self.older_headers += contract.is_of_the_version_before(record, row)
        if record.value != row.payload:
            self.payload.fail(f"{where}: its {len(record.value or b'')} bytes are not the row's {len(row.payload)}")
        if order is None or reading.said is None:  # another check reports rows without an order
            return
        self.order.examined += 1
        said = _fields(reading.said)
        if differing := [name for name, value in said.items() if value != order[name]]:
            self.order.fail(f"{where}: {', '.join(differing)} not as in order {order['order_id']}")


def frame(key: bytes | None, headers: Headers) -> int:
    """Return a hash of a record's key and headers. Comparable only within this process."""
    return hash((key, *headers))


def _fields(said: Said) -> _Order:
    """Return the fields of an event's payload, by the names of the order's columns."""
    if not isinstance(said, OrderCreated):
        cancelled_us = said.cancelled_at.seconds * 1_000_000 + said.cancelled_at.nanos // 1000
        return {"order_id": said.order_id, "tenant_id": said.tenant_id, "cancelled_at": cancelled_us}
    return {
        "order_id": said.order_id,
        "tenant_id": said.tenant_id,
        "customer_id": said.customer_id,
        "amount_cents": said.amount_cents,
        "currency": said.currency,
        "first_status": OrderStatus.Name(said.status) if said.status in OrderStatus.values() else str(said.status),
        "created_at": said.created_at.seconds * 1_000_000 + said.created_at.nanos // 1000,
    }
