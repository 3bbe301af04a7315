"""What a reader or a writer of the topic may rely on, and how the consumer group behaves."""

import contextlib
import signal
import uuid
from collections import defaultdict
from datetime import UTC

import grpc
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.structs import OffsetAndMetadata

from brewctl.delivery.broker import PARTITIONS
from brewctl.delivery.broker.kafka_python.connection_settings import connection
from brewctl.proto import orders_pb2, orders_pb2_grpc
from tests.conftest import Rig
from tests.integration.kafka_tools import (
    Good,
    committed_offsets,
    end_offsets,
    finish,
    good_record,
    kafka_admin,
    raw_client,
    send_raw,
)
from tests.integration.reading import read_topic

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
GROUP = "inventory"


def reserved(rig: Rig) -> dict[str, int]:
    """How often each order is reserved."""
    found = rig.connection.execute("SELECT order_id::text, count(*) FROM inventory_reservations GROUP BY order_id")
    return {str(order_id): int(str(times)) for order_id, times in found}


def produce(rig: Rig, goods: list[Good], *, partition: int | None = None) -> None:
    """Write each record to the partition, or one after the other to all of them."""
    with raw_client(rig.settings) as client:
        for position, good in enumerate(goods):
            place = (rig.settings.topic, position % PARTITIONS if partition is None else partition)
            send_raw(client, place, good.key, good.value, good.headers)


def wait_until_all_is_committed(rig: Rig) -> None:
    ends = end_offsets(rig.settings, rig.settings.topic)
    with kafka_admin(rig.settings) as admin:
        rig.wait(f"committed offsets {ends}", lambda: committed_offsets(admin, GROUP, rig.settings.topic) == ends)


# What order-service writes


def test_an_order_becomes_the_record_of_the_contract(rig: Rig) -> None:
    node, address = rig.serve("order-7")
    told = (("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01"), ("x-tenant-id", "tea.house_2"))
    with grpc.insecure_channel(address) as channel:
        create = orders_pb2_grpc.OrderServiceStub(channel).Create  # type: ignore[no-untyped-call]
        for somebody, metadata in (("alice", ()), ("Zoë ☕", told)):
            request = orders_pb2.CreateRequest(customer_id=somebody, amount_cents=450, currency="EUR")
            create(request, metadata=metadata, timeout=30)
    rig.wait("both orders in Kafka", lambda: rig.counts().outbox_unpublished == 0)
    assert finish(node) == 0

    records = {record.key: record for record in read_topic(rig.settings)}
    rows = rig.connection.execute(
        "SELECT o.id::text, o.tenant_id, o.customer_id, o.amount_cents, o.currency, o.status, o.created_at,"
        " x.id, x.payload, x.publisher_node, x.published_at IS NOT NULL, x.event_id, x.traceparent"
        " FROM orders o JOIN outbox x ON x.aggregate_id = 'order-' || o.id ORDER BY x.id"
    ).fetchall()
    assert len(rows) == len(records) == 2
    traces = []
    for order_id, tenant, customer, amount, currency, status, created_at, outbox_id, payload, *rest in rows:
        publisher, done, event_id, traceparent = rest
        key = f"order-{order_id}"
        record = records[key.encode()]
        assert isinstance(payload, bytes)
        assert record.value == payload
        event = orders_pb2.OrderCreated.FromString(payload)
        assert (event.order_id, event.tenant_id, event.customer_id, event.amount_cents, event.currency) == (
            order_id,
            tenant,
            customer,
            amount,
            currency,
        )
        assert orders_pb2.OrderStatus.Name(event.status) == status == "ORDER_STATUS_NEW"
        assert event.created_at.ToDatetime(tzinfo=UTC) == created_at
        assert record.headers == [
            ("outbox-id", str(outbox_id).encode()),
            ("aggregate-id", key.encode()),
            ("publisher-node", b"order-7"),
            ("trace-id", event.trace_id.encode()),
            ("tenant-id", event.tenant_id.encode()),
            ("event-type", b"order.created"),
            ("content-type", b"application/x-protobuf"),
            ("event-id", str(event_id).encode()),
            ("aggregate-seq", b"1"),
            *([("traceparent", str(traceparent).encode())] if tenant != "brew" else []),
        ]
        assert traceparent == (None if tenant == "brew" else told[0][1])
        assert (publisher, done) == ("order-7", True)
        traces.append((event.tenant_id, event.trace_id))
    assert traces[1] == ("tea.house_2", TRACE)
    assert traces[0][0] == "brew"
    assert traces[0][1] not in {TRACE, ""}


def test_the_events_of_one_order_share_a_partition_in_outbox_order(rig: Rig) -> None:
    goods = [good_record() for _ in range(8)]
    for _ in range(4):
        for good in goods:
            rig.connection.execute(
                "INSERT INTO outbox (aggregate_id, topic, payload) VALUES (%s, %s, %s)",
                (good.key.decode(), rig.settings.topic, good.value),
            )
    rig.serve()
    rig.wait("all events in Kafka", lambda: rig.counts().outbox_unpublished == 0)
    places: dict[bytes | None, set[int]] = defaultdict(set)
    ids: dict[bytes | None, list[int]] = defaultdict(list)
    for record in read_topic(rig.settings):
        places[record.key].add(record.partition)
        ids[record.key].append(int(dict(record.headers)["outbox-id"]))
    assert places.keys() == {good.key for good in goods}
    assert all(len(partitions) == 1 for partitions in places.values())
    assert all(len(order) == 4 and order == sorted(order) for order in ids.values()), ids


# What inventory-service reads


def test_records_compressed_by_other_producers_are_reserved_once(rig: Rig) -> None:
    codecs = ("gzip", "snappy", "lz4", "zstd")
    sent = {codec: [good_record(customer_id="c" * 100) for _ in range(20)] for codec in codecs}
    for codec, goods in sent.items():
        producer = KafkaProducer(
            **connection(rig.settings, name="test"), compression_type=codec, acks="all", linger_ms=200
        )
        with contextlib.closing(producer):
            futures = [
                producer.send(rig.settings.topic, good.value, good.key, headers=good.headers, partition=2)
                for good in goods
            ]
            for future in futures:
                future.get(timeout=30)
            assert producer.metrics()["producer-metrics"]["compression-rate-avg"] < 1, codec
    rig.start("inventory-1", "consume", "inventory")
    wait_until_all_is_committed(rig)
    times = reserved(rig)
    for codec, goods in sent.items():
        assert {times.get(good.order_id, 0) for good in goods} == {1}, codec
    assert len(times) == sum(map(len, sent.values()))


def test_a_redelivered_record_has_its_effect_once_and_counts_as_skipped(rig: Rig) -> None:
    goods = [good_record() for _ in range(9)]
    produce(rig, goods)
    produce(rig, goods[:3])  # the same outbox ids, published again after a crash
    node = rig.start("inventory-1", "consume", "inventory")
    wait_until_all_is_committed(rig)
    assert finish(node) == 0
    assert reserved(rig) == {good.order_id: 1 for good in goods}
    assert node.lines[-1] == "[inventory-1] inventory-service stopped. processed=12 reserved=9 skipped=3"

    # After a clean stop the group has committed all, in every partition.
    ends = end_offsets(rig.settings, rig.settings.topic)
    assert ends == {0: 3, 1: 3, 2: 3, 3: 1, 4: 1, 5: 1}
    with kafka_admin(rig.settings) as admin:
        assert committed_offsets(admin, GROUP, rig.settings.topic) == ends

    # A crash before the offsets were committed: all come again.
    with contextlib.closing(
        KafkaConsumer(**connection(rig.settings, name="test"), group_id=GROUP, enable_auto_commit=False)
    ) as group:
        group.assign([TopicPartition(rig.settings.topic, partition) for partition in ends])
        group.commit({TopicPartition(rig.settings.topic, partition): OffsetAndMetadata(0, "") for partition in ends})
    node = rig.start("inventory-2", "consume", "inventory")
    wait_until_all_is_committed(rig)
    assert finish(node) == 0
    assert reserved(rig) == {good.order_id: 1 for good in goods}
    assert node.lines[-1] == "[inventory-2] inventory-service stopped. processed=12 reserved=0 skipped=12"


def test_two_nodes_split_the_partitions_and_a_stopped_one_leaves_its_own_at_once(rig: Rig) -> None:
    # Only a member that says goodbye can lose its partitions before this session ends.
    arguments = ("consume", "inventory", "--session-timeout", "120")
    first = rig.start("inventory-1", *arguments)
    second = rig.start("inventory-2", *arguments)
    first.wait_for("its half", lambda node: node.assignment == [0, 2, 4])
    second.wait_for("its half", lambda node: node.assignment == [1, 3, 5])
    assert "[inventory-1] partitions assigned [0, 2, 4]" in first.lines
    assert "[inventory-2] partitions assigned [1, 3, 5]" in second.lines
    second.process.send_signal(signal.SIGTERM)
    first.wait_for("all partitions", lambda node: node.assignment == [0, 1, 2, 3, 4, 5], timeout_s=60)
    assert second.ended(within_s=30) == 0
    # The survivor reads what the other one owned.
    goods = [good_record() for _ in range(PARTITIONS)]
    produce(rig, goods)
    rig.wait("all reserved", lambda: reserved(rig) == {good.order_id: 1 for good in goods})


def test_a_group_held_by_another_balancing_protocol_ends_the_consumer_with_one_line(rig: Rig) -> None:
    stranger = KafkaConsumer(
        **connection(rig.settings, name=f"stranger-{uuid.uuid4().hex[:6]}"),
        group_id=GROUP,
        enable_auto_commit=False,
        partition_assignment_strategy=[RangePartitionAssignor],
    )
    with contextlib.closing(stranger):
        stranger.subscribe([rig.settings.topic])

        def joined() -> bool:
            stranger.poll(timeout_ms=100)
            return len(stranger.assignment()) == PARTITIONS

        rig.wait("the stranger in the group", joined)
        refused = rig.brewctl("consume", "inventory", "--node", "inventory-1", timeout=60)
    assert refused.returncode == 1, refused
    (line,) = refused.stderr.splitlines()
    assert "consumer group inventory" in line
    assert "balancing protocol" in line


@pytest.mark.parametrize("role", ["inventory", "notifications"])
def test_without_its_topic_a_consumer_does_not_start(rig: Rig, role: str) -> None:
    topic = f"{rig.settings.topic}-that-nobody-made"
    started = rig.brewctl("consume", role, "--topic", topic, timeout=30)
    assert started.returncode == 1
    (line,) = started.stderr.splitlines()
    assert topic in line
    assert "`brewctl topic create`" in line
