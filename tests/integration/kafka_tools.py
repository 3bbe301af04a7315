"""Any record into Kafka, and what its groups have committed. A rig for a whole module.

What another team's producer may send is more than `KafkaProducer.send` lets through, so `send_raw`
builds the batch itself.
"""

import contextlib
import itertools
import signal
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self

import psycopg
from confluent_kafka import TopicPartition as Place
from confluent_kafka.admin import AdminClient
from google.protobuf.timestamp_pb2 import Timestamp
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.client_async import KafkaClient
from kafka.protocol.produce import ProduceRequest
from kafka.record import MemoryRecordsBuilder
from psycopg import sql

from brewctl.config import Settings
from brewctl.delivery import events
from brewctl.delivery.broker import PARTITIONS, open_admin
from brewctl.delivery.broker.kafka_python.connection_settings import connection
from brewctl.lab.play.nodes import Node
from brewctl.lifecycle import wait_until
from brewctl.proto.orders_pb2 import ORDER_STATUS_NEW, OrderCreated
from tests import conftest

RawHeaders = Sequence[tuple[str, bytes | None]]
GZIP = 1
_MAGIC = 2
_BATCH_BYTES = 64 * 1024 * 1024
_outbox_ids = itertools.count(1_000_000)


class RawKey(str):
    """A header's name that is these bytes on the wire, whether they are UTF-8 or not."""

    __slots__ = ("raw",)
    raw: bytes

    def __new__(cls, raw: bytes) -> Self:
        key = super().__new__(cls, raw.decode("latin-1"))
        key.raw = raw
        return key

    def encode(self, *_: Any, **__: Any) -> bytes:
        return self.raw


class Good(NamedTuple):
    """A record that a consumer must handle."""

    order_id: str
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


def good_record(*, customer_id: str = "alice") -> Good:
    order = OrderCreated(
        order_id=str(uuid.uuid4()),
        customer_id=customer_id,
        amount_cents=450,
        currency="EUR",
        status=ORDER_STATUS_NEW,
        created_at=_now(),
        trace_id=uuid.uuid4().hex,
        tenant_id="brew",
    )
    key = events.aggregate_id(order.order_id)
    headers = events.order_headers(next(_outbox_ids), order, node="another-team")
    return Good(order.order_id, key.encode(), order.SerializeToString(), headers)


def replaced(headers: Sequence[tuple[str, bytes]], **new: bytes | None) -> list[tuple[str, bytes | None]]:
    """Give headers other values: `outbox_id=b""` replaces `outbox-id`."""
    values = {name.replace("_", "-"): value for name, value in new.items()}
    assert values.keys() <= dict(headers).keys()
    return [(name, values.get(name, value)) for name, value in headers]


@contextlib.contextmanager
def raw_client(settings: Settings) -> Iterator[Any]:
    client = KafkaClient(**connection(settings, name="raw"))
    try:
        client.add_topic(settings.topic)
        yield client
    finally:
        client.close()


def send_raw(
    client: Any,
    place: tuple[str, int],
    key: bytes | None,
    value: bytes | None,
    headers: RawHeaders = (),
    *,
    codec: int = 0,
) -> int:
    """Write one record, as a batch of its own, and return its offset."""
    batch = MemoryRecordsBuilder(_MAGIC, codec, _BATCH_BYTES)
    batch.append(timestamp=None, key=key, value=value, headers=list(headers))
    batch.close()
    topic, partition = place
    request = ProduceRequest[7](
        transactional_id=None, required_acks=-1, timeout=10_000, topics=[(topic, [(partition, batch.buffer())])]
    )
    future = client.send(_ready_leader(client, TopicPartition(topic, partition)), request)
    client.poll(future=future, timeout_ms=30_000)
    assert future.succeeded(), future.exception
    ((_, ((_, error, offset, *_),)),) = future.value.topics
    assert error == 0, f"kafka answered {error}"
    return int(offset)


def _ready_leader(client: Any, place: TopicPartition) -> int:
    def ready() -> bool:
        leader = client.cluster.leader_for_partition(place)
        if leader is None or leader < 0:
            client.poll(future=client.cluster.request_update(), timeout_ms=1_000)
            return False
        if client.ready(leader):
            return True
        client.poll(timeout_ms=50)
        return False

    wait_until(f"leader of {place}", ready, timeout_s=30, every_s=0.01)
    return int(client.cluster.leader_for_partition(place))


def end_offsets(settings: Settings, topic: str) -> dict[int, int]:
    """Ends of the partitions that hold a record."""
    with contextlib.closing(KafkaConsumer(**connection(settings, name="test"), group_id=None)) as reader:
        ends = reader.end_offsets([TopicPartition(topic, partition) for partition in range(PARTITIONS)])
    return {place.partition: end for place, end in ends.items() if end}


def remove_records(settings: Settings, before: Mapping[int, int] | None = None) -> None:
    """Remove the topic's records before these offsets, default: all, as retention does."""
    if before is None:
        with open_admin(settings) as admin:
            before = {number: end for number, (_, end) in admin.ends(settings.topic).items()}
    client = AdminClient({"bootstrap.servers": ",".join(settings.brokers)})
    places = [Place(settings.topic, partition, offset) for partition, offset in before.items()]
    for removed in client.delete_records(places).values():
        removed.result(30)


@contextlib.contextmanager
def kafka_admin(settings: Settings) -> Iterator[Any]:
    with contextlib.closing(KafkaAdminClient(**connection(settings, name="test"))) as admin:
        yield admin


def committed_offsets(admin: Any, group: str, topic: str) -> dict[int, int]:
    """What a group has committed of a topic: partition → the offset that it reads next."""
    offsets = admin.list_consumer_group_offsets(group)
    return {place.partition: kept.offset for place, kept in offsets.items() if place.topic == topic}


def finish(node: Node) -> int:
    """SIGTERM a node, wait for its end and for its last line; its exit code."""
    node.process.send_signal(signal.SIGTERM)
    return node.ended(within_s=30)


@contextlib.contextmanager
def refused_connections(rig: conftest.Rig, servers: dict[str, str], node: str) -> Iterator[None]:
    """The database is away for one node: it ends that one's connections and takes no new ones."""
    (name,) = rig.connection.execute("SELECT current_database()").fetchone() or ("",)
    database = sql.Identifier(str(name))
    with psycopg.connect(servers["BREW_DATABASE_URL"], autocommit=True) as maintenance:
        maintenance.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(database))
        try:
            rig.connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = %s",
                (node,),
            )
            yield
        finally:
            maintenance.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(database))


def _now() -> Timestamp:
    now = Timestamp()
    now.FromDatetime(datetime.now(UTC))
    return now
