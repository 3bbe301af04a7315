"""Transactions of other producers: what they commit is read, their markers and what they abort are not."""

import contextlib
import uuid
from collections.abc import Iterator, Sequence

import pytest
from confluent_kafka import Producer as TransactionalProducer

from brewctl.delivery.broker import open_admin, open_reader
from brewctl.errors import BrewError
from tests.conftest import Rig, limited
from tests.integration.kafka_tools import Good, finish, good_record, raw_client, send_raw
from tests.integration.reading import read_topic

PARTITION = 2


@contextlib.contextmanager
def transactional(rig: Rig) -> Iterator[TransactionalProducer]:
    """Another team's producer. Its transaction, if one is open at the end, is aborted."""
    producer = TransactionalProducer(
        {
            "bootstrap.servers": ",".join(rig.settings.brokers),
            "transactional.id": uuid.uuid4().hex,
            "transaction.timeout.ms": 60_000,
        }
    )
    producer.init_transactions(30)
    try:
        yield producer
    finally:
        with contextlib.suppress(Exception):
            producer.abort_transaction(30)


def send(rig: Rig, producer: TransactionalProducer, goods: Sequence[Good], *, partition: int = PARTITION) -> None:
    """Have records acknowledged."""
    for good in goods:
        producer.produce(
            rig.settings.topic, value=good.value, key=good.key, headers=list(good.headers), partition=partition
        )
    producer.flush(30)


def end_of(rig: Rig, partition: int = PARTITION) -> int:
    with open_admin(rig.settings) as admin:
        return admin.ends(rig.settings.topic)[partition][1]


def committed(rig: Rig, partition: int = PARTITION) -> int | None:
    with open_admin(rig.settings) as admin:
        return admin.committed("inventory", rig.settings.topic).get(partition)


def reserved(rig: Rig) -> set[str]:
    return {str(row[0]) for row in rig.connection.execute("SELECT order_id FROM inventory_reservations")}


def test_markers_are_no_records_and_what_was_aborted_has_no_effect(rig: Rig) -> None:
    kept, undone = [good_record() for _ in range(3)], [good_record() for _ in range(3)]
    first, second, third = kept
    with transactional(rig) as producer, transactional(rig) as other:
        # Of two transactions in one partition, interleaved, one is aborted.
        producer.begin_transaction()
        other.begin_transaction()
        send(rig, producer, [first])
        send(rig, other, undone[:1])
        send(rig, producer, [second])
        send(rig, other, undone[1:])
        other.abort_transaction(30)
        producer.commit_transaction(30)
        # The producer of the aborted one goes on, and what it commits counts.
        other.begin_transaction()
        send(rig, other, [third])
        other.commit_transaction(30)
    node = rig.start("inventory-1", "consume", "inventory")
    rig.wait("their effects", lambda: len(reserved(rig)) == len(kept))
    end = end_of(rig)
    assert end == len(kept) + len(undone) + 3, "three markers"
    rig.wait("the offset behind the last marker", lambda: committed(rig) == end)
    groups = rig.brewctl("groups")
    assert [line.split()[-1] for line in groups.stdout.splitlines() if line.startswith("inventory ")] == ["0"] * 6
    assert finish(node) == 0
    assert reserved(rig) == {good.order_id for good in kept}
    assert node.lines[-1].endswith("processed=3 reserved=3 skipped=0")
    assert read_topic(rig.settings, dead_letters=True) == []


def test_a_group_gets_past_a_partition_that_has_nothing_but_what_was_aborted(rig: Rig) -> None:
    with transactional(rig) as producer:
        producer.begin_transaction()
        send(rig, producer, [good_record() for _ in range(5)])
        producer.abort_transaction(30)
        node = rig.start("inventory-1", "consume", "inventory")
        rig.wait("the offset behind it", lambda: committed(rig) == end_of(rig))
        # And once it is a member: a position moves without a record.
        producer.begin_transaction()
        send(rig, producer, [good_record() for _ in range(5)])
        producer.abort_transaction(30)
        rig.wait("the offset behind the next one", lambda: committed(rig) == end_of(rig) == 12)
        producer.begin_transaction()
        good = good_record()
        send(rig, producer, [good])
        producer.commit_transaction(30)
        rig.wait("its effect", lambda: reserved(rig) == {good.order_id})
    assert finish(node) == 0
    assert node.lines[-1].endswith("processed=1 reserved=1 skipped=0")


def test_what_is_behind_an_open_transaction_waits_for_its_end(rig: Rig) -> None:
    undone, behind, elsewhere = good_record(), good_record(), good_record()
    with transactional(rig) as producer, raw_client(rig.settings) as client:
        producer.begin_transaction()
        send(rig, producer, [undone])
        send_raw(client, (rig.settings.topic, PARTITION), behind.key, behind.value, behind.headers)
        send_raw(client, (rig.settings.topic, PARTITION + 1), elsewhere.key, elsewhere.value, elsewhere.headers)
        rig.start("inventory-1", "consume", "inventory")
        rig.wait("the effect in another partition", lambda: rig.counts().reservations > 0)
        assert reserved(rig) == {elsewhere.order_id}
        producer.abort_transaction(30)
        rig.wait("the effect behind it", lambda: reserved(rig) == {elsewhere.order_id, behind.order_id})


def test_a_reader_reads_what_a_consumer_reads_and_waits_for_an_open_transaction(rig: Rig) -> None:
    kept, undone, open_still = good_record(), good_record(), good_record()
    with transactional(rig) as producer:
        producer.begin_transaction()
        send(rig, producer, [undone])
        producer.abort_transaction(30)
        producer.begin_transaction()
        send(rig, producer, [kept])
        producer.commit_transaction(30)
        with open_reader(rig.settings) as reader:
            bounds = reader.bounds(rig.settings.topic)
            read = [record for batch in reader.read(rig.settings.topic, bounds) for record in batch]
        assert bounds[PARTITION] == (0, 4)
        assert [record.key for record in read] == [kept.key]

        producer.begin_transaction()
        send(rig, producer, [open_still])
        hurried = limited(rig.settings, kafka_request_s=1.0)
        with open_reader(hurried) as reader, pytest.raises(BrewError, match=r"open in partitions \[2\]"):
            list(reader.read(rig.settings.topic, reader.bounds(rig.settings.topic)))
        producer.commit_transaction(30)
    with open_reader(rig.settings) as reader:
        bounds = reader.bounds(rig.settings.topic)
        read = [record for batch in reader.read(rig.settings.topic, bounds) for record in batch]
    assert [record.key for record in read] == [kept.key, open_still.key]


def test_verify_sees_no_record_in_a_marker(rig: Rig) -> None:
    _, address = rig.serve()
    assert rig.brewctl("create-order", "--customer", "c1", "--addr", address).returncode == 0
    with transactional(rig) as producer:
        for end in (producer.commit_transaction, producer.abort_transaction):
            producer.begin_transaction()
            producer.produce(rig.settings.topic, value=b"", key=b"k", headers=[("event-type", b"other")], partition=1)
            producer.flush(30)
            end(30)
    rig.start("inventory-1", "consume", "inventory")
    rig.start("notification-1", "consume", "notifications")
    rig.wait("all told", lambda: rig.counts().reservations == rig.counts().notifications == 1)
    verified = rig.brewctl("verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert read_topic(rig.settings, dead_letters=True) == []
