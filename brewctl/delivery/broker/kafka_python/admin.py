"""Administration of topics, consumer groups and access rules; questions about brokers."""

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from kafka import errors
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic

from brewctl.config import Settings
from brewctl.delivery.broker import failure_reasons
from brewctl.delivery.broker.failure_reasons import absent
from brewctl.delivery.broker.kafka_python import acls, topic_settings
from brewctl.delivery.broker.kafka_python.acls import Rule
from brewctl.delivery.broker.kafka_python.admin_client import EARLIEST, LATEST, AdminClient
from brewctl.delivery.broker.kafka_python.connection_settings import connection, explained, require_headers
from brewctl.delivery.broker.kafka_python.forgetting import GroupSubscribedToTopicError
from brewctl.delivery.broker.kafka_python.groups import Group, group_of, live_members
from brewctl.delivery.broker.kafka_python.topic_settings import TopicSetting
from brewctl.delivery.broker.partitions import PARTITIONS
from brewctl.delivery.broker.record import DEAD_LETTER_BYTES

REPLICATION_FACTOR = 3
MIN_IN_SYNC_REPLICAS = 2
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker that the cluster counts as alive, and the address that it advertises."""

    node_id: int
    address: str  # HOST:PORT


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition of a topic, with broker ids: its leader, its replicas, and the replicas in sync."""

    partition: int
    leader: int  # -1 if there is none
    replicas: tuple[int, ...]
    isr: tuple[int, ...]


class Admin:
    """Questions to the cluster and changes to its topics and groups."""

    def __init__(self, client: AdminClient, *, patience_s: float) -> None:
        self._client = client
        self._patience_s = patience_s

    @property
    def protocol(self) -> str:
        """The newest Kafka version whose protocol both the client and the broker speak, such as 2.6."""
        return ".".join(map(str, self._client.config["api_version"][:2]))

    def brokers(self) -> list[Broker]:
        """Return the brokers that the cluster counts as alive, by id."""
        # Not which of them is the controller: in KRaft mode the answer names any broker as the controller.
        alive = self._client.describe_cluster()["brokers"]
        found = [Broker(broker["node_id"], f"{broker['host']}:{broker['port']}") for broker in alive]
        return sorted(found, key=lambda broker: broker.node_id)

    def clock(self) -> float | None:
        """Return the clock of Kafka's controller, in seconds since the epoch; None if this Kafka can't tell it."""
        return self._client.controller_clock()

    def topics(self) -> set[str]:
        """Return the names of all topics. Never creates one."""
        return set(self._client.list_topics())

    def create_topic(
        self, topic: str, *, replicas: int, dead_letters: bool = False, wanted: Mapping[str, str] | None = None
    ) -> bool:
        """Create a topic of 6 partitions, configured as `wanted`. False if it exists: then nothing is changed."""
        wanted = {"min.insync.replicas": str(min(MIN_IN_SYNC_REPLICAS, replicas)), **(wanted or {})}
        if dead_letters:
            wanted["max.message.bytes"] = str(DEAD_LETTER_BYTES)
            wanted["retention.ms"] = "-1"  # kept for ever: a user has to settle each dead letter
        try:
            self._client.create_topics([NewTopic(topic, PARTITIONS, replicas, topic_configs=wanted)])
        except errors.TopicAlreadyExistsError:
            return False
        return True

    def delete_topic(self, topic: str) -> None:
        """Ask Kafka to delete a topic, which it does later. A topic that does not exist is no error."""
        with contextlib.suppress(errors.UnknownTopicOrPartitionError):
            self._client.delete_topics([topic])

    def forget(self, group: str, topics: Collection[str]) -> None:
        """Delete a group's committed offsets of these topics only. Raises BrewError if members read one of them."""
        offsets = self._patiently(lambda: self._client.list_consumer_group_offsets(group))
        partitions = {
            topic: sorted(place.partition for place in offsets if place.topic == topic)
            for topic in topics
            if any(place.topic == topic for place in offsets)
        }
        if not partitions:
            return
        try:
            self._patiently(lambda: self._client.delete_offsets(group, partitions))
        except GroupSubscribedToTopicError:
            raise live_members(group) from None

    def require_no_readers(self, topics: Collection[str], groups: Collection[str]) -> None:
        """Raise BrewError if any group that Kafka knows has members that read one of the topics.

        During a rebalance a member's subscription may be unknown: a member of `groups` then counts as a reader.
        """
        wanted = set(topics)
        names = sorted({*groups, *self.groups()})
        for described in self._patiently(lambda: self._client.describe_consumer_groups(names)) if names else ():
            for member in described.members:
                subscribed = getattr(member.member_metadata, "subscription", None)
                if (not subscribed and described.group in groups) or wanted & set(subscribed or ()):
                    raise live_members(described.group)

    def groups(self) -> list[str]:
        """Return the names of all consumer groups that have members or committed offsets, of any topic."""
        brokers = [broker.node_id for broker in self.brokers()]
        listed = self._patiently(lambda: self._client.list_consumer_groups(brokers))
        # A group whose offsets were committed without any member has an empty protocol.
        return sorted(name for name, protocol in listed if protocol in {"consumer", ""})

    def group(self, name: str, topic: str) -> Group:
        """Describe a consumer group, with the topic's partitions that each member owns."""
        (described,) = self._patiently(lambda: self._client.describe_consumer_groups([name]))
        return group_of(described, topic)

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """Return the group's committed offset of each partition that has one."""
        offsets = self._patiently(lambda: self._client.list_consumer_group_offsets(group))
        return {place.partition: kept.offset for place, kept in offsets.items() if place.topic == topic}

    def commit(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        """Set a group's committed offsets of these partitions. Raises BrewError if the group has live members."""
        try:
            self._patiently(lambda: self._client.commit_offsets(group, topic, offsets))
        except errors.UnknownMemberIdError:
            raise live_members(group) from None

    def ends(self, topic: str) -> dict[int, tuple[int, int]]:
        """Return, for each partition, its first offset and the offset that the next record will get.

        Two round trips. Raises BrewError if the topic does not exist or a partition has no leader.
        """
        firsts, ends = self._offsets(topic, EARLIEST, LATEST)
        return {partition: (firsts[partition], ends[partition]) for partition in sorted(ends)}

    def offsets_at(self, topic: str, time_ms: int) -> dict[int, int]:
        """Return, for each partition, the offset of the first record whose timestamp is not before `time_ms`.

        `time_ms`: since the epoch. The partition's end if it has no such record. Raises what `ends` raises.
        """
        found, ends = self._offsets(topic, time_ms, LATEST)
        return {partition: ends[partition] if offset < 0 else offset for partition, offset in sorted(found.items())}

    def describe(self, topic: str) -> list[Partition]:
        """Return the partitions of a topic, as the answering broker knows them. Raises BrewError if it knows none."""
        if not (partitions := self._partitions(topic)):
            raise absent(topic)
        return partitions

    def configuration(self, topic: str) -> dict[str, str]:
        """Return a topic's settings, Kafka's defaults included. Raises BrewError if the topic does not exist."""
        return {name: each.value for name, each in self.topic_settings(topic).items()}

    def topic_settings(self, topic: str) -> dict[str, TopicSetting]:
        """Return a topic's settings as `configuration` does, each with its source."""
        (answer,) = self._patiently(
            lambda: self._client.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
        )
        code, found = topic_settings.read(answer)
        if code == errors.UnknownTopicOrPartitionError.errno:
            raise absent(topic)
        if code:
            raise errors.for_code(code)(topic)
        return found

    def configure(self, topic: str, wanted: Mapping[str, str | None]) -> None:
        """Change these settings of a topic only; None removes one, so that the brokers' default holds again.

        Raises BrewError if the topic does not exist.
        """

        def ask() -> None:
            try:
                self._client.change_topic(topic, wanted)
            except errors.UnknownTopicOrPartitionError:  # `_patiently` would retry this one
                raise absent(topic) from None

        self._patiently(ask)

    def allow(self, rules: Sequence[Rule]) -> None:
        """Add access rules. Raises BrewError if the brokers have no authorizer."""
        acls.allow(self._client, rules)

    def is_hidden(self, topic: str) -> bool:
        """Return whether this user has no right to learn whether the topic exists."""
        return _is_hidden(self._client.describe_topics([topic])[0])

    def is_led(self, topic: str) -> bool:
        """Return whether every partition of the topic has a leader, as the answering broker knows it."""
        partitions = self._partitions(topic)
        return bool(partitions) and all(partition.leader >= 0 for partition in partitions)

    def _partitions(self, topic: str) -> list[Partition]:
        (described,) = self._client.describe_topics([topic])
        if _is_hidden(described):
            raise errors.TopicAuthorizationFailedError(topic)
        partitions = [
            Partition(each["partition"], each["leader"], tuple(each["replicas"]), tuple(each["isr"]))
            for each in described["partitions"]
        ]
        return sorted(partitions, key=lambda partition: partition.partition)

    def _offsets(self, topic: str, *moments: int) -> list[dict[int, int]]:
        def ask() -> list[dict[int, int]]:
            leaders = {partition.partition: partition.leader for partition in self.describe(topic)}
            if leaderless := [partition for partition, leader in leaders.items() if leader < 0]:
                raise errors.LeaderNotAvailableError(f"{topic} {leaderless}")
            return self._client.list_offsets(topic, leaders, moments)

        return self._patiently(ask)

    def _patiently(self, call: Callable[[], _T]) -> _T:
        """Make a call; retry it on retriable errors, such as a new cluster's while it elects group coordinators."""
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return call()
            except errors.KafkaError as error:
                if not error.retriable or time.monotonic() > deadline:
                    raise
            time.sleep(0.2)


def _is_hidden(described: Mapping[str, object]) -> bool:
    return bool(described["error_code"] == errors.TopicAuthorizationFailedError.errno)


@contextlib.contextmanager
def open_admin(settings: Settings, *, broker: str = "") -> Iterator[Admin]:
    """Connect for administration: to any broker, or only to the one at `broker`. Raises UnreachableError, BrewError."""
    asked = replace(settings, brokers=(broker,)) if broker else settings
    with explained(asked):
        client = AdminClient(
            request_timeout_ms=int(settings.limits.kafka_admin_s * 1000), **connection(asked, name="brewctl")
        )
        require_headers(client)
        try:
            yield Admin(client, patience_s=settings.limits.kafka_patience_s)
        finally:
            client.close()


def require_topic(settings: Settings) -> None:
    """Raise BrewError if the topic or its dead-letter topic is missing, or this user has no right to see it.

    Raises UnreachableError if Kafka does not answer.
    """
    with open_admin(settings) as admin:
        missing = sorted({settings.topic, settings.dead_letter_topic} - admin.topics())
        if hidden := [topic for topic in missing if admin.is_hidden(topic)]:
            raise failure_reasons.forbidden(settings, f"DESCRIBE topic {' and '.join(hidden)}")
    if missing:
        raise absent(*missing)
