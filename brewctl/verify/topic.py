"""The topic against the database, a batch at a time, so that memory stays flat.

Each record is compared with its outbox row and its order at once: rows that never change once they are committed, so
they are looked up in the present. What only the whole set shows (what is missing, twice there, in the wrong order) is
asked of PostgreSQL, which gets a row in `seen` for each record.
"""

from collections.abc import Collection, Sequence

from brewctl.config import Settings
from brewctl.delivery.broker import Record
from brewctl.delivery.broker.partitions import partition_for
from brewctl.delivery.database import BoundedConnection
from brewctl.proto.orders_pb2 import OrderCreated, OrderStatus
from brewctl.verify import contract
from brewctl.verify.contract import Headers, Row, shown
from brewctl.verify.result import Check
from brewctl.verify.workspace import Workspace

_FIELDS = ("order_id", "tenant_id", "customer_id", "amount_cents", "currency", "status", "created_at")
_Fields = tuple[str, str, str, int, str, str, int]
_WHOLE_HASH = 2**31


class Records:
    """Takes every record of the topic, and notes it in `seen`. `present` looks rows up as they are now.

    `hashed`: note the hash of each key too, for who has to tell in which partition it belongs.
    """

    def __init__(self, settings: Settings, workspace: Workspace, present: BoundedConnection, *, hashed: bool) -> None:
        self._topic = settings.topic
        self._workspace = workspace
        self._present = present
        self._hashed = hashed
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
        found: list[tuple[Record, int, OrderCreated]] = []
        with self._workspace.copy("copy_seen") as copy:
            for record in records:
                reading = contract.read(record.value, record.headers)
                if reading.outbox_id and reading.order:
                    found.append((record, reading.outbox_id, reading.order))
                copy.write_row((
                    record.partition,
                    record.offset,
                    record.timestamp_ms,
                    reading.outbox_id,
                    reading.unreadable,
                    hash(record.key),
                    partition_for(record.key, _WHOLE_HASH) if self._hashed and record.key is not None else None,
                    frame(record.key, record.headers),
                    hash(record.value or b""),
                    hash(dict(record.headers).get("publisher-node")),
                ))  # fmt: skip
        rows = self._rows({outbox_id for _, outbox_id, _ in found})
        orders = self._orders({row.aggregate_id for row in rows.values()})
        for record, outbox_id, said in found:
            row = rows.get(outbox_id)
            self._compare(record, outbox_id, said, row, orders.get(row.aggregate_id) if row else None)

    def _rows(self, ids: Collection[int]) -> dict[int, Row]:
        rows = self._workspace.look(self._present, "outbox_rows", ids=list(ids))
        return {row[0]: Row(*row) for row in rows}

    def _orders(self, aggregates: Collection[str]) -> dict[str, _Fields]:
        ids = {aggregate: contract.order_of(aggregate) for aggregate in aggregates}
        wanted = [order_id for order_id in ids.values() if order_id]
        found: dict[str, _Fields] = {row[0]: row for row in self._workspace.look(self._present, "orders", ids=wanted)}
        return {aggregate: found[order_id] for aggregate, order_id in ids.items() if order_id in found}

    def _compare(
        self, record: Record, outbox_id: int, said: OrderCreated, row: Row | None, order: _Fields | None
    ) -> None:
        where = f"outbox {outbox_id} at {record.partition}@{record.offset}"
        self.strangers.examined += 1
        if row is None or row.topic != self._topic:
            self.strangers.fail(f"{where} is not in the outbox" if row is None else f"{where} is for topic {row.topic}")
            return
        for check in (self.key, self.headers, self.payload):
            check.examined += 1
        if record.key != row.aggregate_id.encode():
            self.key.fail(f"{where}: key is {shown(record.key)}, not {row.aggregate_id}")
        written = said if record.value == row.payload else contract.parse(row.payload) or OrderCreated()
        if difference := contract.headers_differ(record, row, written, order[1] if order else None):
            self.headers.fail(f"{where}: {difference}")
        if record.value != row.payload:
            self.payload.fail(f"{where}: its {len(record.value or b'')} bytes are not the row's {len(row.payload)}")
        if order is None:  # a row without an order is another check's
            return
        self.order.examined += 1
        fields = _fields(said)
        if fields != order:
            differing = [name for name, this, that in zip(_FIELDS, fields, order, strict=True) if this != that]
            self.order.fail(f"{where}: {', '.join(differing)} not as in order {order[0]}")


def frame(key: bytes | None, headers: Headers) -> int:
    """Return a fingerprint of a record's key and headers, as `hash` is one of bytes: good within this process."""
    return hash((key, *headers))


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
