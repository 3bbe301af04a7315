"""Partitions that are added to a live topic: running roles find them, and everything that shows partitions does."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]

from brewctl.config import Settings
from brewctl.delivery import database, events
from brewctl.delivery.broker import Producer, Record
from brewctl.delivery.broker.kafka_python.connection_settings import connection
from brewctl.delivery.broker.partitions import partition_for
from brewctl.delivery.database import Pool
from brewctl.delivery.inbox.burial import Burial
from brewctl.delivery.inbox.consumption import Consumption
from brewctl.delivery.inbox.inbox import Inbox
from brewctl.delivery.orders import cancellation
from brewctl.delivery.outbox.publisher import Publisher
from brewctl.lifecycle import wait_until
from brewctl.proto.orders_pb2 import CancelRequest
from brewctl.roles import inventory, notifications
from brewctl.verify import verify
from tests.conftest import Rig, limited
from tests.integration.chain_tools import broken
from tests.integration.client_tools import both_clients, send
from tests.integration.kafka_tools import Good, good_record
from tests.integration.outbox_tools import create_order, unpublished
from tests.integration.reading import read_topic

MORE = 8


@pytest.fixture
def settings(rig: Rig) -> Settings:
    return limited(rig.settings, kafka_metadata_age_s=1.0)


@pytest.fixture
def roles(settings: Settings, pool: Pool) -> Iterator[None]:
    """A publisher and a consumer, which run."""
    publisher = Publisher(settings, pool, node="order-1")
    with running(settings, publisher.run, wake=publisher.notify):
        yield


@pytest.fixture
def consumer(rig: Rig) -> Iterator[None]:
    """A consumer alone, which learns of partitions a few seconds later."""
    with running(limited(rig.settings, kafka_metadata_age_s=5.0)):
        yield


@contextlib.contextmanager
def running(
    settings: Settings, *others: Callable[[threading.Event], None], wake: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """A consumer, and what else runs until a stop."""
    stop = threading.Event()
    with database.open_pool(settings, name="inventory-1", size=1) as own:
        inbox = Inbox(settings, own, inventory.DOWNSTREAM, node="inventory-1")
        consumption = Consumption(settings, inbox, group="inventory", node="inventory-1")
        threads = [threading.Thread(target=run, args=(stop,)) for run in (*others, consumption.run)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            wake()
            for thread in threads:
                thread.join()


def moving() -> Good:
    """A record that belongs into a partition which is not there yet."""
    while True:
        good = good_record()
        if partition_for(good.key, MORE) >= 6:
            return good


def add_partitions(settings: Settings) -> None:
    admin = AdminClient({"bootstrap.servers": ",".join(settings.brokers)})
    for added in admin.create_partitions([NewPartitions(settings.topic, MORE)]).values():
        added.result(30)

    def is_known() -> bool:
        partitions = admin.list_topics(settings.topic, timeout=30).topics[settings.topic].partitions
        return len(partitions) == MORE and all(each.leader >= 0 for each in partitions.values())

    wait_until("the partitions", is_known, timeout_s=60)


def as_record(settings: Settings, good: Good) -> Record:
    return Record(settings.topic, good.key, good.value, good.headers)


def publish_once(settings: Settings, pool: Pool) -> None:
    producer = Producer(settings, node="order-1")
    try:
        assert Publisher(settings, pool, node="order-1").publish_batch(producer) == 1
    finally:
        producer.close()


@both_clients
@pytest.mark.usefixtures("roles")
def test_running_roles_find_partitions_that_were_added(rig: Rig, capfd: pytest.CaptureFixture[str]) -> None:
    create_order(rig)
    rig.wait("the first effect", lambda: rig.counts().reservations == 1)
    dead = moving()
    # A letter of an older version: today's consumers park an event that can be read.
    burial = Burial(rig.settings, "inventory", node="inventory-1")
    died = Record(rig.settings.topic, dead.key, dead.value, dead.headers, partition_for(dead.key, 6), 999)
    burial.bury([(died, "postgres rejected its effect")])
    burial.close()

    add_partitions(rig.settings)
    said = ""

    def has_said(words: str) -> bool:
        nonlocal said
        said += capfd.readouterr().out
        return words in said

    rig.wait("all partitions assigned", lambda: has_said("partitions assigned [0, 1, 2, 3, 4, 5, 6, 7]"))

    def published_there() -> bool:
        create_order(rig)
        rig.wait("all published", lambda: unpublished(rig) == [])
        return any(record.partition >= 6 for record in read_topic(rig.settings))

    rig.wait("a row in a new partition", published_there)
    assert has_said("partitions_added")
    rig.wait("all effects", lambda: rig.counts().reservations == rig.counts().orders)

    # The copy of a dead letter goes where the events of its key go now.
    assert rig.brewctl("dlq", "redrive", "--all").returncode == 0
    rig.wait("its effect", lambda: rig.counts().reservations == rig.counts().orders + 1)
    copies = [record for record in read_topic(rig.settings) if record.key == dead.key]
    assert {record.partition for record in copies} == {partition_for(dead.key, MORE)}
    assert len(copies) == 1

    (shown, *_) = json.loads(rig.brewctl("groups", "--json").stdout)
    assert [each["partition"] for each in shown["partitions"]] == list(range(MORE))
    assert {each["owner"] for each in shown["partitions"]} == {"inventory-1"}
    found = {each["check"]: each for each in json.loads(rig.brewctl("doctor", "--json").stdout)["findings"]}
    assert found["topic"]["verdict"] == "warn"
    assert "has 8 partitions, not 6" in found["topic"]["found"]
    assert "recreate" not in found["topic"]["mend"]


@both_clients
@pytest.mark.usefixtures("consumer")
def test_what_came_before_a_consumer_knew_the_partition_is_read(rig: Rig) -> None:
    """A publisher that knows it earlier has filled it by then: the group begins there at the first record."""
    early = good_record()
    send(rig.settings, [as_record(rig.settings, early)])
    rig.wait("the first effect", lambda: rig.counts().reservations == 1)
    add_partitions(rig.settings)
    late = [moving() for _ in range(20)]
    places = send(rig.settings, [as_record(rig.settings, good) for good in late])
    assert {place.partition for place in places} == {6, 7}
    rig.wait("every effect", lambda: rig.counts().reservations == 1 + len(late))


def test_a_key_that_moves_has_no_order_across_the_change_and_the_right_end(rig: Rig, pool: Pool) -> None:
    """Its later event is in another partition, whose consumer may be ahead: effects are merged by their number."""
    order_id = create_order(rig)
    while partition_for(events.aggregate_id(order_id).encode(), MORE) < 6:
        rig.connection.execute("DELETE FROM outbox; DELETE FROM orders")
        order_id = create_order(rig)
    publish_once(rig.settings, pool)
    add_partitions(rig.settings)
    wish = cancellation.accept(CancelRequest(order_id=order_id, reason="moved"), traceparent=None)
    assert cancellation.cancel(rig.connection, wish, topic=rig.settings.topic, left_s=lambda: 30.0)[1]
    publish_once(rig.settings, pool)

    created, cancelled = sorted(read_topic(rig.settings), key=lambda record: record.partition)
    assert created.partition < 6 <= cancelled.partition
    for downstream in (inventory.DOWNSTREAM, notifications.DOWNSTREAM):
        inbox = Inbox(rig.settings, pool, downstream, node="node-1")
        inbox.handle([cancelled])
        inbox.handle([created])
    (released,) = rig.connection.execute("SELECT released_at FROM inventory_reservations").fetchone() or (None,)
    assert released is not None
    found = verify(rig.settings)
    assert found.ok, broken(found)
    assert found.facts.moved_keys == 1


def test_a_client_asks_for_partitions_twice_a_minute() -> None:
    """The library's own default is five minutes."""
    assert connection(Settings(), name="test")["metadata_max_age_ms"] == 30_000
