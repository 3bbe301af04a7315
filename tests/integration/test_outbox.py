"""The publisher: what is committed reaches Kafka, in order per aggregate, whoever dies when."""

import threading
import time
import uuid
from collections.abc import Sequence

import psycopg
import pytest
from kafka.admin import NewTopic

from brewctl.delivery import database
from brewctl.delivery.broker import Outcome, Place, Producer, Record, RefusedError, UnavailableError, open_admin
from brewctl.delivery.database import Pool
from brewctl.delivery.outbox.publisher import Publisher
from brewctl.lifecycle import wait_until
from brewctl.proto.orders_pb2 import OrderCreated
from tests.conftest import Rig, limited
from tests.integration.kafka_tools import kafka_admin
from tests.integration.outbox_tools import (
    TAKEN,
    ScriptedProducer,
    add_event,
    create_order,
    fetch,
    published_ids,
    unpublished,
)
from tests.integration.reading import read_topic


def test_every_committed_row_is_published_and_marked_with_its_node_and_place(
    rig: Rig, pool: Pool, producer: Producer
) -> None:
    ids = {create_order(rig) for _ in range(20)}
    publisher = Publisher(rig.settings, pool, node="order-7")
    assert publisher.publish_batch(producer) == 20
    assert publisher.publish_batch(producer) == 0
    assert unpublished(rig) == []
    records = read_topic(rig.settings)
    assert {OrderCreated.FromString(record.value or b"").order_id for record in records} == ids
    places = {int(dict(record.headers)["outbox-id"]): (record.partition, record.offset) for record in records}
    marks = rig.connection.execute("SELECT id, publisher_node, kafka_partition, kafka_offset FROM outbox").fetchall()
    assert {row_id: (partition, offset) for row_id, _, partition, offset in marks} == places
    assert {node for _, node, _, _ in marks} == {"order-7"}


def test_only_acknowledged_rows_are_marked(rig: Rig, pool: Pool) -> None:
    for _ in range(3):
        create_order(rig)
    first, second, third = unpublished(rig)
    with pytest.raises(UnavailableError):
        Publisher(rig.settings, pool, node="n").publish_batch(ScriptedProducer(TAKEN, UnavailableError("away"), TAKEN))  # type: ignore[arg-type]
    assert unpublished(rig) == [second]
    assert {first, third}.isdisjoint(unpublished(rig))


def test_a_crash_between_acknowledgement_and_commit_publishes_twice(rig: Rig, pool: Pool, producer: Producer) -> None:
    create_order(rig)

    class CrashingProducer:
        def send(self, records: Sequence[Record], *, timeout_s: float) -> list[Outcome]:
            outcomes = producer.send(records, timeout_s=timeout_s)
            # The publisher's session dies after Kafka has the records and before they are marked.
            rig.connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND state = 'idle in transaction'"
            )
            return outcomes

    publisher = Publisher(rig.settings, pool, node="n")
    with pytest.raises(psycopg.OperationalError):
        publisher.publish_batch(CrashingProducer())  # type: ignore[arg-type]
    assert len(unpublished(rig)) == 1
    assert publisher.publish_batch(producer) == 1
    assert unpublished(rig) == []
    records = read_topic(rig.settings)
    assert len(records) == 2
    assert len({dict(record.headers)["outbox-id"] for record in records}) == 1


def test_behind_its_locked_head_an_aggregate_drains_in_runs(rig: Rig, pool: Pool, producer: Producer) -> None:
    hot, other = str(uuid.uuid4()), str(uuid.uuid4())
    ids = [add_event(rig, hot) for _ in range(70)]
    add_event(rig, other)
    publisher = Publisher(rig.settings, pool, node="n")
    assert publisher.publish_batch(producer) == 71
    assert unpublished(rig) == []
    assert published_ids(rig, hot) == ids


def test_a_row_that_commits_late_is_still_found(rig: Rig, pool: Pool, producer: Producer) -> None:
    """Ids become visible out of order: a publisher that remembers the last id would lose this one."""
    slow, quick = str(uuid.uuid4()), str(uuid.uuid4())
    publisher = Publisher(rig.settings, pool, node="n")
    with database.connect(rig.settings) as writer:
        with writer.transaction():
            late = add_event(rig, slow, writer)
            assert add_event(rig, quick) > late
            assert publisher.publish_batch(producer) == 1
        assert publisher.publish_batch(producer) == 1
    assert unpublished(rig) == []


def test_order_per_key_holds_with_many_publishers(rig: Rig) -> None:
    keys, per_key = [str(uuid.uuid4()) for _ in range(5)], 40
    # One consistent writer; the rows of the keys alternate.
    with rig.connection.transaction():
        for _ in range(per_key):
            for key in keys:
                add_event(rig, key)
    stop = threading.Event()
    with database.open_pool(rig.settings, name="test", size=4) as pool:
        publishers = [Publisher(rig.settings, pool, node=f"order-{number}") for number in range(4)]
        threads = [threading.Thread(target=publisher.run, args=(stop,)) for publisher in publishers]
        for thread in threads:
            thread.start()
        try:
            rig.wait("an empty outbox", lambda: not unpublished(rig))
        finally:
            stop.set()
            for publisher in publishers:
                publisher.notify()
            for thread in threads:
                thread.join()
    seen: dict[bytes | None, list[int]] = {}
    for record in read_topic(rig.settings):
        seen.setdefault(record.key, []).append(int(dict(record.headers)["outbox-id"]))
    assert len(seen) == len(keys)
    for outbox_ids in seen.values():
        assert outbox_ids == sorted(outbox_ids)
        assert len(outbox_ids) == per_key


class Noted(Publisher):
    """A publisher that notes when it last looked for rows."""

    looked_at = 0.0

    def publish_batch(self, producer: Producer) -> int:
        found = super().publish_batch(producer)
        self.looked_at = time.monotonic()
        return found


def test_a_commit_wakes_the_publisher_without_a_poll(rig: Rig) -> None:
    settings = limited(rig.settings, publish_poll_s=60.0)
    stop = threading.Event()
    with database.open_pool(settings, name="test", size=2) as pool:
        publisher = Noted(settings, pool, node="n")
        thread = threading.Thread(target=publisher.run, args=(stop,))
        thread.start()
        try:
            for which in ("first", "second"):
                # It looks again soon after a row, and while it leads: from then on the next poll is 30 s away at least.
                wait_until("a wait", lambda: 0 < publisher.looked_at < time.monotonic() - 1, timeout_s=60)
                create_order(rig)
                publisher.notify()
                wait_until(f"the {which} row published", lambda: not unpublished(rig), timeout_s=20)
        finally:
            stop.set()
            publisher.notify()
            thread.join()


def test_the_producer_waits_for_all_in_sync_replicas_and_keeps_order(producer: Producer) -> None:
    """What the client defaults to, acks=1 and no retries, loses acknowledged records with a broker."""
    config = producer._wire._producer.config  # type: ignore[attr-defined]
    assert config["acks"] == -1
    assert config["max_in_flight_requests_per_connection"] == 1
    assert config["retries"] > 1000


def test_a_publisher_that_stands_still_gives_its_rows_up(rig: Rig, pool: Pool, producer: Producer) -> None:
    """Paused between fetch and commit, it would keep its rows from the others for ever."""
    create_order(rig)
    with database.connect(limited(rig.settings, database_idle_transaction_s=6), name="order-1") as paused:
        paused.execute("BEGIN")
        assert len(fetch(paused, limit=10)) == 1
        publisher = Publisher(rig.settings, pool, node="order-2")
        assert publisher.publish_batch(producer) == 0
        rig.wait("its row", lambda: publisher.publish_batch(producer) == 1, timeout_s=30)
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            paused.execute("COMMIT")


def test_a_topic_that_is_missing_slows_no_other(rig: Rig, pool: Pool, producer: Producer) -> None:
    absent = f"{rig.settings.topic}-absent"
    stray = OrderCreated(order_id=str(uuid.uuid4())).SerializeToString()
    rig.connection.execute(
        "INSERT INTO outbox (aggregate_id, topic, payload) VALUES ('order-stray', %s, %s)", (absent, stray)
    )
    (waiting,) = unpublished(rig)
    create_order(rig)
    publisher = Publisher(rig.settings, pool, node="n")
    assert publisher.publish_batch(producer) == 2
    assert unpublished(rig) == [waiting]
    # Its rows are not even fetched for a while: nothing waits for its metadata again.
    backoff, _ = publisher._absent[absent]
    publisher._absent[absent] = (backoff, time.monotonic() + 3600)
    create_order(rig)
    assert publisher.publish_batch(producer) == 1
    assert unpublished(rig) == [waiting]
    with open_admin(rig.settings) as admin:
        admin.create_topic(absent, replicas=1)
        try:
            publisher._absent[absent] = (backoff, time.monotonic())
            rig.wait("the stray row", lambda: publisher.publish_batch(producer) == 0 and not unpublished(rig))
            assert not publisher._absent
        finally:
            admin.delete_topic(absent)


def test_the_publisher_heeds_its_bytes(rig: Rig, pool: Pool, producer: Producer) -> None:
    settings = limited(rig.settings, publish_bytes=1)
    create_order(rig)
    create_order(rig)
    publisher = Publisher(settings, pool, node="n")
    assert [publisher.publish_batch(producer) for _ in range(3)] == [1, 1, 0]
    # What Kafka never takes is no different, such as a topic's name that can't be: the client would look for ever.
    payload = OrderCreated(order_id=str(uuid.uuid4())).SerializeToString()
    for name in ("no topic!", "..", ""):
        rig.connection.execute(
            "INSERT INTO outbox (aggregate_id, topic, payload) VALUES (%s, %s, %s)", (name, name, payload)
        )
    assert [publisher.publish_batch(producer) for _ in range(4)] == [1, 1, 1, 0]
    failed = rig.connection.execute("SELECT topic FROM outbox WHERE failed_at IS NOT NULL ORDER BY topic").fetchall()
    assert failed == [("",), ("..",), ("no topic!",)]
    assert len(unpublished(rig)) == 3


def test_an_invalid_record_is_refused(rig: Rig, producer: Producer) -> None:
    """A compacted topic takes nothing without a key; the client knows no name for that."""
    with kafka_admin(rig.settings) as admin:
        topic = f"{rig.settings.topic}-compacted"
        admin.create_topics([NewTopic(topic, 1, 1, topic_configs={"cleanup.policy": "compact"})])
        try:
            keyless, keyed = Record(topic, None, b"v", []), Record(topic, b"k", b"v", [])
            rig.wait("the topic", lambda: isinstance(producer.send([keyed], timeout_s=5)[0], Place))
            refused, taken = producer.send([keyless, keyed], timeout_s=5)
        finally:
            admin.delete_topics([topic])
    assert isinstance(refused, RefusedError)
    assert "invalidrecord" in str(refused).replace("_", "").lower()
    assert isinstance(taken, Place)
