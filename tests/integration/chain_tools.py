"""A chain that is filled by hand, without roles: each link can be made wrong on purpose."""

import contextlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from kafka import KafkaConsumer, TopicPartition
from kafka.protocol.api import Request, Response
from kafka.protocol.types import Array, Int16, Int32, Int64, Schema, String
from kafka.structs import OffsetAndMetadata

from brewctl.delivery import database, events
from brewctl.delivery.broker import Reader, open_reader
from brewctl.delivery.broker.kafka_python.connection_settings import connection
from brewctl.delivery.database import Pool
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.inbox.inbox import Inbox
from brewctl.delivery.orders import acceptance, store
from brewctl.proto.orders_pb2 import CreateRequest, OrderCancelled
from brewctl.roles import inventory, notifications
from brewctl.verify import Verification
from tests.conftest import Rig, open_rig
from tests.integration.kafka_tools import RawHeaders, _ready_leader, raw_client, replaced, send_raw
from tests.integration.outbox_tools import mark_published

PROJECTIONS = (inventory.DOWNSTREAM, notifications.DOWNSTREAM)


class Row(NamedTuple):
    """An order's outbox row, and the record that it becomes."""

    order_id: str
    outbox_id: int
    value: bytes
    headers: list[tuple[str, bytes]]

    @property
    def key(self) -> bytes:
        return events.aggregate_id(self.order_id).encode()


@dataclass
class Chain:
    """Orders, records, effects and offsets of one rig, each made when it is asked for."""

    rig: Rig
    client: Any
    pool: Pool
    reader: Reader
    ends: dict[str, dict[int, int]] = field(default_factory=dict)

    def order(self, *, topic: str = "") -> Row:
        """Commit an order with its outbox row."""
        request = CreateRequest(customer_id="alice", amount_cents=450, currency="EUR")
        new = acceptance.accept(request, tenant_id="tea", traceparent=None)
        with self.pool.connection() as connection:
            store.create(connection, new, topic=topic or self.rig.settings.topic)
        return self.row(new.order.order_id)

    def row(self, order_id: str) -> Row:
        """Return the newest outbox row of an order."""
        ((outbox_id, payload, event_type, *columns),) = self.execute(
            "SELECT id, payload, event_type, tenant_id, trace_id, event_id, aggregate_seq, traceparent FROM outbox"
            " WHERE aggregate_id = %s ORDER BY id DESC LIMIT 1",
            events.aggregate_id(order_id),
        ).fetchall()
        named = dict(zip(("tenant_id", "trace_id", "event_id", "seq", "traceparent"), columns, strict=True))
        headers = events.headers_for(outbox_id, events.aggregate_id(order_id), event_type, node="order-1", **named)
        return Row(order_id, outbox_id, payload, headers)

    def cancel(self, row: Row) -> Row:
        """Cancel an order, with its event, and return that."""
        with self.rig.connection.transaction():
            ((now,),) = self.execute(
                "UPDATE orders SET status = 'ORDER_STATUS_CANCELLED', cancelled_at = clock_timestamp() WHERE id = %s"
                " RETURNING cancelled_at",
                row.order_id,
            ).fetchall()
            return self.cancelled_event(row, now)

    def cancelled_event(self, row: Row, at: datetime) -> Row:
        """Add the event that an order is cancelled, without its change."""
        said = OrderCancelled(order_id=row.order_id, trace_id="1" * 32, tenant_id="tea")
        said.cancelled_at.FromDatetime(at)
        self.execute(
            "SELECT outbox_add(%s, %s, 'order.cancelled', %s, 'tea', %s)",
            self.rig.settings.topic,
            row.key.decode(),
            said.SerializeToString(),
            said.trace_id,
        )
        return self.row(row.order_id)

    def execute(self, statement: str, *parameters: object) -> Any:
        return self.rig.connection.execute(statement, parameters)

    def twin(self, row: Row) -> Row:
        """Commit a second outbox row of the same order, as the version before wrote it."""
        ((twin,),) = self.execute(
            "INSERT INTO outbox (aggregate_id, topic, payload)"
            " SELECT aggregate_id, topic, payload FROM outbox WHERE id = %s RETURNING id",
            row.outbox_id,
        ).fetchall()
        headers = [(name, str(twin).encode() if name == "outbox-id" else value) for name, value in row.headers[:7]]
        return row._replace(outbox_id=twin, headers=headers)

    def mark(self, *rows: Row, partition: int = 0, offset: int = 0, node: str = "order-1") -> None:
        ids = [row.outbox_id for row in rows]
        mark_published(self.rig.connection, ids, partition=partition, offset=offset, node=node)

    def send(self, row: Row, *, partition: int = 0, node: str = "order-1", **wrong: Any) -> int:
        """Publish a row, with a wrong `key`, `value` or `headers`, and return the record's offset."""
        headers = wrong.get("headers", replaced(row.headers, publisher_node=node.encode()))
        offset = self.raw(wrong.get("key", row.key), wrong.get("value", row.value), headers, partition=partition)
        self.mark(row, partition=partition, offset=offset, node=node)
        return offset

    def raw(
        self, key: bytes | None, value: bytes | None, headers: RawHeaders, *, partition: int = 0, letter: bool = False
    ) -> int:
        topic = self.rig.settings.dead_letter_topic if letter else self.rig.settings.topic
        return send_raw(self.client, (topic, partition), key, value, headers)

    def bury(self, row: Row, offset: int, *, group: str = "inventory", **wrong: Any) -> int:
        """Write a dead letter of a record in partition 0, with a wrong `value` or `topic`; its offset."""
        notes = {
            "dlq-reason": "says the test",
            "dlq-group": group,
            "dlq-topic": wrong.get("topic", self.rig.settings.topic),
            "dlq-partition": "0",
            "dlq-offset": str(offset),
        }
        headers = [*row.headers, *((name, value.encode()) for name, value in notes.items())]
        return self.raw(row.key, wrong.get("value", row.value), headers, letter=True)

    def settle(self, letter: int, outcome: str, *, place: tuple[int, int] | None = None) -> None:
        """Note what became of a dead letter in partition 0."""
        ((found,),) = self.reader.read(self.rig.settings.dead_letter_topic, {0: (letter, letter + 1)})
        self.execute(
            "INSERT INTO dead_letters_settled VALUES (%s, 0, %s, to_timestamp(%s / 1000.0), %s, %s, %s)",
            self.rig.settings.dead_letter_topic,
            letter,
            found.timestamp_ms,
            outcome,
            *(place or (None, None)),
        )

    def consume(self, projections: Sequence[Downstream] = PROJECTIONS) -> None:
        """Handle what is new in the topic as the roles do, and commit its end."""
        bounds = self.reader.bounds(self.rig.settings.topic)
        for projection in projections:
            ends = self.ends.setdefault(projection.group, {})
            ranges = {partition: (ends.get(partition, 0), end) for partition, (_, end) in bounds.items()}
            inbox = Inbox(self.rig.settings, self.pool, projection, node=projection.group)
            for records in self.reader.read(self.rig.settings.topic, ranges):
                inbox.handle(records)
            inbox.close()
            self.commit(projection.group, {partition: end for partition, (_, end) in bounds.items() if end})

    def commit(self, group: str, offsets: Mapping[int, int]) -> None:
        """Commit offsets as a group without members may."""
        self.ends.setdefault(group, {}).update(offsets)
        places = {
            TopicPartition(self.rig.settings.topic, partition): OffsetAndMetadata(offset, "")
            for partition, offset in offsets.items()
        }
        with contextlib.closing(
            KafkaConsumer(**connection(self.rig.settings, name="test"), group_id=group, enable_auto_commit=False)
        ) as committer:
            committer.assign(list(places))
            committer.commit(places)

    def delete_records(self, before: int) -> None:
        """Do to partition 0 what retention does."""
        place = TopicPartition(self.rig.settings.topic, 0)
        leader = _ready_leader(self.client, place)
        future = self.client.send(leader, _DeleteRecords([(place.topic, [(place.partition, before)])], 10_000))
        self.client.poll(future=future, timeout_ms=30_000)
        ((_, ((_, low, error),)),) = future.value.topics
        assert (low, error) == (before, 0)


@contextlib.contextmanager
def open_chain(servers: dict[str, str], logs: Path) -> Iterator[Chain]:
    with (
        open_rig(servers, logs) as rig,
        raw_client(rig.settings) as client,
        database.open_pool(rig.settings, name="test", size=2) as pool,
        open_reader(rig.settings) as reader,
    ):
        client.add_topic(rig.settings.dead_letter_topic)
        yield Chain(rig, client, pool, reader)


def broken(found: Verification) -> dict[str, int]:
    """The checks that fail, and how often."""
    return {check.name: check.violations for check in found.checks if check.violations}


def other_event() -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    """An event of another type: key, value, headers."""
    return uuid.uuid4().bytes, b"whatever", [("event-type", b"stock.counted")]


class _DeletedRecords(Response):  # type: ignore[misc]
    API_KEY = 21
    API_VERSION = 1
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            Array(
                ("name", String("utf-8")),
                ("partitions", Array(("partition", Int32), ("low_watermark", Int64), ("error_code", Int16))),
            ),
        ),
    )


class _DeleteRecords(Request):  # type: ignore[misc]
    API_KEY = 21
    API_VERSION = 1
    RESPONSE_TYPE = _DeletedRecords
    SCHEMA = Schema(
        (
            "topics",
            Array(("name", String("utf-8")), ("partitions", Array(("partition", Int32), ("offset", Int64)))),
        ),
        ("timeout_ms", Int32),
    )
