"""Brokers as others configure them: they create topics by themselves, or name an address that nobody here can reach."""

import dataclasses
import json
import threading
import uuid
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer as OtherProducer

from brewctl.config import Settings
from brewctl.delivery.broker import (
    Consumer,
    Producer,
    Record,
    UnavailableError,
    UnsentError,
    open_admin,
    open_reader,
    require_topic,
)
from brewctl.delivery.database import Pool
from brewctl.delivery.outbox.publisher import Publisher
from brewctl.delivery.topics import topics
from brewctl.errors import BrewError, UnreachableError
from brewctl.lifecycle import wait_until
from tests.conftest import Rig, limited
from tests.integration.outbox_tools import create_order, unpublished
from tests.integration.own_broker import OwnBroker, own_broker

NOWHERE = "no-such-host.invalid:9092"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnBroker]:
    """One for all: it creates topics by itself, and its second listener is advertised as a host that nobody knows."""
    folder = tmp_path_factory.mktemp("kafka")
    properties = {"auto.create.topics.enable": "true", "num.partitions": "1"}
    with own_broker(folder, advertised=NOWHERE, properties=properties) as broker:
        yield broker


@pytest.fixture
def settings(broker: OwnBroker) -> Settings:
    return limited(Settings(brokers=(broker.address,), topic=f"t-{uuid.uuid4().hex[:12]}"), kafka_metadata_s=1.0)


@pytest.fixture
def misled(broker: OwnBroker, rig: Rig) -> Settings:
    """Settings of the rig's database and the listener that sends on to nowhere."""
    topics.create(dataclasses.replace(rig.settings, brokers=(broker.address,)))
    return limited(dataclasses.replace(rig.settings, brokers=(broker.detour,)), kafka_connect_s=2.0)


def test_no_client_of_ours_creates_a_topic_by_asking_for_it(settings: Settings) -> None:
    def is_there(topic: str) -> bool:
        with open_admin(settings) as admin:
            return topic in admin.topics()

    producer = Producer(settings, node="test")
    (outcome,) = producer.send([Record(settings.topic, b"k", b"v", [])], timeout_s=2)
    producer.abandon()
    assert isinstance(outcome, UnsentError), outcome

    member = Consumer(
        settings,
        threading.Event(),
        group=f"g-{settings.topic}",
        node="test",
        on_assigned=lambda _partitions: None,
        on_revoked=lambda: None,
    )
    for _ in range(3):
        assert member.poll(timeout_s=0.3) == []
    member.close()
    with open_reader(settings) as reader, pytest.raises(BrewError, match="missing in kafka"):
        reader.bounds(settings.topic)
    with open_admin(settings) as admin, pytest.raises(BrewError, match="missing in kafka"):
        admin.ends(settings.topic)
    with pytest.raises(BrewError, match="missing in kafka"):
        require_topic(settings)
    assert not is_there(settings.topic)

    # It is that kind of broker.
    other = OtherProducer({"bootstrap.servers": settings.brokers[0]})
    other.produce(settings.topic, b"v")
    other.flush(30)
    wait_until("a topic that another client made", lambda: is_there(settings.topic), timeout_s=30)


def test_rows_wait_for_a_topic_that_was_deleted_and_a_smaller_one_is_told(
    broker: OwnBroker, rig: Rig, pool: Pool, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = limited(dataclasses.replace(rig.settings, brokers=(broker.address,)), kafka_metadata_s=1.0, publish_s=2)
    topics.create(settings)
    create_order(rig)
    publisher, stop = Publisher(settings, pool, node="order-1"), threading.Event()
    running = threading.Thread(target=publisher.run, args=(stop,))
    running.start()
    said = ""

    def has_said(words: str) -> bool:
        nonlocal said
        said += capfd.readouterr().out
        return words in said

    try:
        rig.wait("the first row in kafka", lambda: unpublished(rig) == [])
        with open_admin(settings) as admin:
            admin.delete_topic(settings.topic)
            rig.wait("no topic", lambda: settings.topic not in admin.topics())
            create_order(rig)
            publisher.notify()
            wait_until("a line on it", lambda: has_said("topic_absent"), timeout_s=60)
            assert settings.topic not in admin.topics()
            assert len(unpublished(rig)) == 1
        other = OtherProducer({"bootstrap.servers": settings.brokers[0]})
        other.produce(settings.topic, b"v")
        other.flush(30)
        rig.wait("the second row in kafka", lambda: unpublished(rig) == [], timeout_s=90)
        wait_until("a line on its partitions", lambda: has_said("partitions_fewer"), timeout_s=10)
    finally:
        stop.set()
        publisher.notify()
        running.join()
    assert "republish --missing" in said


def test_an_advertised_address_that_cannot_be_reached_is_named(
    misled: Settings, broker: OwnBroker, rig: Rig, pool: Pool, capfd: pytest.CaptureFixture[str]
) -> None:
    named = f"kafka {broker.detour} answers, but broker 1 is advertised as {NOWHERE}, which can't be resolved from here"
    with pytest.raises(UnreachableError) as raised, open_admin(misled) as admin:
        admin.brokers()
    assert raised.value.message == named
    assert "advertised.listeners" in raised.value.hint

    env = {"BREW_KAFKA_BROKERS": broker.detour}
    rig.env |= env
    told = rig.brewctl("groups")
    assert (told.returncode, told.stdout) == (3, "")
    assert told.stderr.startswith(f"brewctl: {named}: ")
    role = rig.brewctl("consume", "inventory", "--node", "inventory-1")
    assert role.returncode == 3
    assert named in role.stderr
    found = {each["check"]: each for each in json.loads(rig.brewctl("doctor", "--json").stdout)["findings"]}
    assert (found["kafka"]["verdict"], found["kafka"]["found"]) == ("fail", named)

    create_order(rig)
    publisher, stop = Publisher(misled, pool, node="order-1"), threading.Event()
    running = threading.Thread(target=publisher.run, args=(stop,))
    running.start()
    said = ""
    try:

        def has_said() -> bool:
            nonlocal said
            said += capfd.readouterr().out
            return NOWHERE in said

        wait_until("a line that names it", has_said, timeout_s=60)
    finally:
        stop.set()
        publisher.notify()
        running.join()
    assert len(unpublished(rig)) == 1


def test_a_broker_that_is_not_there_at_all_does_not_answer() -> None:
    hurried = limited(Settings(brokers=("127.0.0.1:1",)), kafka_connect_s=1.0)
    with pytest.raises(UnreachableError, match=r"kafka 127\.0\.0\.1:1 does not answer: run `brewctl up`"):
        require_topic(hurried)
    producer: Producer | None = None
    with pytest.raises((UnreachableError, UnavailableError)):
        producer = Producer(hurried, node="test")
    assert producer is None
