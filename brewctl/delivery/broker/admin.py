"""Administration: topics, groups, brokers."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from kafka import KafkaAdminClient, errors
from kafka.admin import NewTopic

from brewctl.config import Settings
from brewctl.delivery.broker.client import DEAD_LETTER_BYTES, connection, explained, require_headers
from brewctl.errors import BrewError

PARTITIONS = 6
REPLICATION_FACTOR = 3
MIN_IN_SYNC_REPLICAS = 2
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a consumer group and the partitions of our topic that it owns."""

    client_id: str
    partitions: tuple[int, ...]


class Admin:
    """Questions to the cluster and changes to its topics and groups."""

    def __init__(self, client: KafkaAdminClient, *, patience_s: float) -> None:
        self._client = client
        self._patience_s = patience_s

    def brokers(self) -> list[int]:
        """Ids of the brokers that the cluster says are alive."""
        return sorted(broker["node_id"] for broker in self._client.describe_cluster()["brokers"])

    def topics(self) -> set[str]:
        """Names of all topics. Never creates one."""
        return set(self._client.list_topics())

    def create_topic(self, topic: str, *, replicas: int, dead_letters: bool = False) -> bool:
        """Create a topic of 6 partitions; False where it was there already."""
        wanted = {"min.insync.replicas": str(min(MIN_IN_SYNC_REPLICAS, replicas))}
        if dead_letters:
            wanted["max.message.bytes"] = str(DEAD_LETTER_BYTES)
            wanted["retention.ms"] = "-1"  # nobody's to forget
        try:
            self._client.create_topics([NewTopic(topic, PARTITIONS, replicas, topic_configs=wanted)])
        except errors.TopicAlreadyExistsError:
            return False
        return True

    def delete_topic(self, topic: str) -> None:
        """Ask for a topic's deletion, which Kafka carries out later. Absent is fine."""
        with contextlib.suppress(errors.UnknownTopicOrPartitionError):
            self._client.delete_topics([topic])

    def delete_group(self, group: str) -> None:
        """Delete a group with its offsets. Absent is fine; BrewError where members are alive."""

        def delete() -> bool:
            for _, error in self._client.delete_consumer_groups([group]):
                if error is errors.NonEmptyGroupError:
                    raise BrewError(f"consumer group {group} has live members", hint="stop its consumers first")
                if error not in (errors.NoError, errors.GroupIdNotFoundError):
                    raise error
            return True

        self._patiently(delete)

    def members(self, group: str, topic: str) -> list[Member]:
        """Members of a group, by name, with what each owns of the topic. Empty where there is no such group."""
        described = self._patiently(lambda: self._client.describe_consumer_groups([group]))
        members = []
        for member in described[0].members:
            assignment = member.member_assignment
            owned = dict(assignment.assignment) if assignment else {}
            members.append(Member(member.client_id, tuple(sorted(owned.get(topic, ())))))
        return sorted(members, key=lambda member: member.client_id)

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """Return the group's committed offset of each partition that has one."""
        offsets = self._patiently(lambda: self._client.list_consumer_group_offsets(group))
        return {place.partition: kept.offset for place, kept in offsets.items() if place.topic == topic}

    def is_led(self, topic: str) -> bool:
        """Whether every partition of the topic has a leader, as the answering broker knows it."""
        (described,) = self._client.describe_topics([topic])
        leaders = [partition["leader"] for partition in described["partitions"]]
        return bool(leaders) and all(leader >= 0 for leader in leaders)

    def _patiently(self, call: Callable[[], _T]) -> _T:
        """Ask again while the cluster says "not yet", as a fresh one does of its group coordinators."""
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return call()
            except errors.KafkaError as error:
                if not error.retriable or time.monotonic() > deadline:
                    raise
            time.sleep(0.2)


@contextlib.contextmanager
def open_admin(settings: Settings, *, broker: str = "") -> Iterator[Admin]:
    """Administration, through any broker or just the one at `broker`. Raises UnreachableError, BrewError."""
    asked = replace(settings, brokers=(broker,)) if broker else settings
    with explained(asked):
        client = KafkaAdminClient(
            request_timeout_ms=int(settings.limits.kafka_admin_s * 1000), **connection(asked, name="brewctl")
        )
        require_headers(client)
        try:
            yield Admin(client, patience_s=settings.limits.kafka_patience_s)
        finally:
            client.close()


def require_topic(settings: Settings) -> None:
    """Raise BrewError where the topic or its dead-letter topic is missing, UnreachableError where Kafka is."""
    with open_admin(settings) as admin:
        missing = sorted({settings.topic, settings.dead_letter_topic} - admin.topics())
    if missing:
        raise BrewError(f"topic {' and '.join(missing)} missing in kafka", hint="run `brewctl topic create`")
