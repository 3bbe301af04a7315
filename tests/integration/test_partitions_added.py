"""Partitions that are added to a live topic: running roles find them, and everything that shows partitions does."""

import json
import threading
from collections.abc import Iterator

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]

from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.broker import Record
from brewctl.delivery.broker.kafka_python.client import connection
from brewctl.delivery.broker.partitions import partition_for
from brewctl.delivery.burial import Burial
from brewctl.delivery.consumption import Consumption
from brewctl.delivery.database import Pool
from brewctl.delivery.inbox import Inbox
from brewctl.delivery.outbox import Publisher
from brewctl.roles import inventory
from tests.conftest import Rig, limited
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
    stop = threading.Event()
    publisher = Publisher(settings, pool, node="order-1")
    with database.open_pool(settings, name="inventory-1", size=1) as own:
        inbox = Inbox(settings, own, inventory.DOWNSTREAM, node="inventory-1")
        consumption = Consumption(settings, inbox, group="inventory", node="inventory-1")
        threads = [threading.Thread(target=run, args=(stop,)) for run in (publisher.run, consumption.run)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            publisher.notify()
            for thread in threads:
                thread.join()


def moving() -> Good:
    """A record that belongs into a partition which is not there yet."""
    while True:
        good = good_record()
        if partition_for(good.key, MORE) >= 6:
            return good


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

    admin = AdminClient({"bootstrap.servers": ",".join(rig.settings.brokers)})
    for added in admin.create_partitions([NewPartitions(rig.settings.topic, MORE)]).values():
        added.result(30)
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


def test_a_client_asks_for_partitions_twice_a_minute() -> None:
    """The library's own default is five minutes."""
    assert connection(Settings(), name="test")["metadata_max_age_ms"] == 30_000
