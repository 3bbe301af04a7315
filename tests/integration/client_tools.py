"""Both Kafka clients, each on a topic of a test's own, and the parts that a contract for them is tested with."""

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from brewctl.config import KafkaClient, Settings
from brewctl.delivery.broker import Consumer, Overtaken, Place, Producer, Record, open_admin
from brewctl.delivery.broker.partitions import partition_for
from brewctl.delivery.topics import topics
from brewctl.lifecycle import wait_until

both_clients = pytest.mark.parametrize("kafka_client", list(KafkaClient))
HEADERS = [
    ("outbox-id", b"1"),
    ("outbox-id", b"a name may come twice"),
    ("größe", "öl".encode()),
    ("empty", b""),
    ("bytes", bytes(range(256))),
    ("trace-id", b"0" * 32),
    ("tenant-id", b"brew"),
    ("event-type", b"order.created"),
    ("content-type", b"application/x-protobuf"),
]


@contextlib.contextmanager
def own_topic(brokers: Sequence[str], client: KafkaClient) -> Iterator[Settings]:
    """Settings with a topic of one test's own, for the time of the block."""
    settings = Settings(brokers=tuple(brokers), topic=f"t-{uuid.uuid4().hex[:12]}", kafka_client=client)
    topics.create(settings)
    yield settings
    with open_admin(settings) as admin:
        for topic in (settings.topic, settings.dead_letter_topic):
            admin.delete_topic(topic)


@contextlib.contextmanager
def sending(settings: Settings, **options: Any) -> Iterator[Producer]:
    producer = Producer(settings, node="test", **options)
    try:
        yield producer
    finally:
        producer.abandon()


def send(settings: Settings, records: Sequence[Record]) -> list[Place]:
    """Send records, all of which have to be taken."""
    with sending(settings) as producer:
        outcomes = producer.send(records, timeout_s=30)
    assert all(isinstance(outcome, Place) for outcome in outcomes), outcomes
    return [outcome for outcome in outcomes if isinstance(outcome, Place)]


def key_of(partition: int, number: int = 0) -> bytes:
    """A key that belongs into a partition of six: one of many."""
    keys = (f"key-{each}".encode() for each in range(number * 1000, (number + 1) * 1000))
    return next(key for key in keys if partition_for(key, 6) == partition)


@dataclass
class Joined:
    """A member of a group, and what it was told."""

    settings: Settings
    name: str = "one"
    group: str = ""
    stop: threading.Event = field(default_factory=threading.Event)
    told: list[str] = field(default_factory=list)
    owned: list[int] = field(default_factory=list)
    read: list[Record] = field(default_factory=list)
    overtaken: list[Overtaken] = field(default_factory=list)
    before_leaving: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.consumer = Consumer(
            self.settings,
            self.stop,
            group=self.group or f"g-{self.settings.topic}",
            node=self.name,
            on_assigned=self._assigned,
            on_revoked=self._revoked,
            on_overtaken=self.overtaken.extend,
        )

    def _assigned(self, partitions: list[int]) -> None:
        self.told.append(f"assigned {partitions}")
        self.owned = partitions

    def _revoked(self) -> None:
        if self.owned:
            self.told.append("leaving")
            self.before_leaving()
        self.owned = []

    def poll(self) -> list[Record]:
        records = self.consumer.poll(timeout_s=0.1)
        self.read += records
        return records

    def poll_until(self, what: str, condition: Callable[[], bool]) -> None:
        def polled() -> bool:
            self.poll()
            return condition()

        wait_until(what, polled, timeout_s=60, every_s=0.0)

    def committed(self) -> dict[int, int]:
        with open_admin(self.settings) as admin:
            return admin.committed(self.group or f"g-{self.settings.topic}", self.settings.topic)


@contextlib.contextmanager
def joined(settings: Settings, **options: Any) -> Iterator[Joined]:
    member = Joined(settings, **options)
    try:
        yield member
    finally:
        member.consumer.close()


def with_client(settings: Settings, client: KafkaClient) -> Settings:
    return replace(settings, kafka_client=client)
