"""Kafka, as the rest of brewctl sees it: administration, a producer, a consumer, its errors in the user's words.

The only module that imports `kafka`, so that another client of the same shape can take its place.
"""

import contextlib
import selectors
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from kafka import ConsumerRebalanceListener, KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import NewTopic
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from kafka.structs import OffsetAndMetadata

from brewctl.config import Settings
from brewctl.delivery.events import Headers
from brewctl.errors import BrewError, UnreachableError

PARTITIONS = 6
REPLICATION_FACTOR = 3
MIN_IN_SYNC_REPLICAS = 2

# What a broker will never accept, however often it is asked.
_REFUSED = (
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.RecordListTooLargeError,
    kafka_errors.InvalidTopicError,
    kafka_errors.InvalidTimestampError,
    kafka_errors.PolicyViolationError,
)
# What no retry mends once a consumer runs: another protocol in the group, or no right to it.
_FATAL_FOR_CONSUMER = (
    kafka_errors.InconsistentGroupProtocolError,
    kafka_errors.InvalidGroupIdError,
    kafka_errors.InvalidSessionTimeoutError,
    kafka_errors.GroupAuthorizationFailedError,
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.AuthenticationFailedError,
    kafka_errors.UnsupportedCodecError,
)
# A dead letter is the largest record of the topic (1 MiB by default) and the reasons for its death.
_DEAD_LETTER_BYTES = 2 * 1024 * 1024
_BOOTSTRAP_MS = 5_000
_ADMIN_S = 30.0
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Record:
    """A record to send, or one that was read (then with its partition and offset)."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    partition: int = -1
    offset: int = -1


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a consumer group and the partitions of our topic that it owns."""

    client_id: str
    partitions: tuple[int, ...]


class RefusedError(Exception):
    """Kafka will never take this record. The message is its reason."""


class UnavailableError(Exception):
    """Kafka did not acknowledge this record in time; whether it has it is unknown."""


class _Selector(selectors.DefaultSelector):
    """Bears with a socket that the client has closed meanwhile: there is nothing to select on it any more.

    Without this a race inside the client ends the role (kafka-python-ng issue 177).
    """

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        try:
            return super().register(fileobj, events, data)
        except ValueError:
            return selectors.SelectorKey(fileobj, -1, events, data)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        try:
            return super().modify(fileobj, events, data)
        except ValueError:
            return selectors.SelectorKey(fileobj, -1, events, data)


class Admin:
    """Questions to the cluster and changes to its topics and groups."""

    def __init__(self, client: KafkaAdminClient) -> None:
        self._client = client

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
            wanted["max.message.bytes"] = str(_DEAD_LETTER_BYTES)
        try:
            self._client.create_topics([NewTopic(topic, PARTITIONS, replicas, topic_configs=wanted)])
        except kafka_errors.TopicAlreadyExistsError:
            return False
        return True

    def delete_topic(self, topic: str) -> None:
        """Ask for a topic's deletion, which Kafka carries out later. Absent is fine."""
        with contextlib.suppress(kafka_errors.UnknownTopicOrPartitionError):
            self._client.delete_topics([topic])

    def delete_group(self, group: str) -> None:
        """Delete a group with its offsets. Absent is fine; BrewError where members are alive."""

        def delete() -> bool:
            for _, error in self._client.delete_consumer_groups([group]):
                if error is kafka_errors.NonEmptyGroupError:
                    raise BrewError(f"consumer group {group} has live members", hint="stop its consumers first")
                if error not in (kafka_errors.NoError, kafka_errors.GroupIdNotFoundError):
                    raise error
            return True

        _patiently(delete)

    def members(self, group: str, topic: str) -> list[Member]:
        """Members of a group, by name, with what each owns of the topic. Empty where there is no such group."""
        described = _patiently(lambda: self._client.describe_consumer_groups([group]))
        members = []
        for member in described[0].members:
            assignment = member.member_assignment
            owned = dict(assignment.assignment) if assignment else {}
            members.append(Member(member.client_id, tuple(sorted(owned.get(topic, ())))))
        return sorted(members, key=lambda member: member.client_id)

    def led_partitions(self, topic: str) -> int:
        """How many partitions of the topic have a leader, as the answering broker knows it."""
        for described in self._client.describe_topics([topic]):
            return sum(1 for partition in described["partitions"] if partition["leader"] >= 0)
        return 0


@contextlib.contextmanager
def open_admin(settings: Settings, *, broker: str = "") -> Iterator[Admin]:
    """Administration, through any broker or just the one at `broker`. Raises UnreachableError, BrewError."""
    with explained(settings):
        client = KafkaAdminClient(
            bootstrap_servers=[broker] if broker else list(settings.brokers),
            client_id="brewctl",
            request_timeout_ms=15_000,
            api_version_auto_timeout_ms=_BOOTSTRAP_MS,
            selector=_Selector,
        )
        try:
            yield Admin(client)
        finally:
            client.close()


def require_topic(settings: Settings) -> None:
    """Raise BrewError where the topic or its dead-letter topic is missing, UnreachableError where Kafka is."""
    with open_admin(settings) as admin:
        missing = sorted({settings.topic, settings.dead_letter_topic} - admin.topics())
    if missing:
        raise BrewError(f"topic {' and '.join(missing)} missing in kafka", hint="run `brewctl topic create`")


class Producer:
    """Sends records with acks from all in-sync replicas, one request in flight, in order per partition.

    Delivery: at least once. Raises UnreachableError where no broker answers now.
    """

    def __init__(self, settings: Settings, *, node: str) -> None:
        with explained(settings):
            self._producer = KafkaProducer(
                bootstrap_servers=list(settings.brokers),
                client_id=node,
                acks="all",
                retries=1_000_000,  # our own deadline ends them
                max_in_flight_requests_per_connection=1,
                request_timeout_ms=30_000,
                max_block_ms=2_000,
                max_request_size=_DEAD_LETTER_BYTES,  # each topic's own limit is the broker's to apply
                api_version_auto_timeout_ms=_BOOTSTRAP_MS,
                selector=_Selector,
            )

    def send(self, records: Sequence[Record], *, timeout_s: float) -> list[RefusedError | UnavailableError | None]:
        """Send, then await each record's own acknowledgement; None for each that has it.

        At most about `timeout_s` + 2 s. After an UnavailableError the records may still be on their
        way: `abandon` this producer, so that none can arrive after a later try.
        """
        deadline = time.monotonic() + timeout_s
        outcomes = self._send(records, deadline)
        # A refusal names a whole batch: ask again for each alone, so that only the guilty is refused.
        if len(records) > 1:
            for position, outcome in enumerate(outcomes):
                if isinstance(outcome, RefusedError):
                    (outcomes[position],) = self._send([records[position]], deadline)
        return outcomes

    def _send(self, records: Sequence[Record], deadline: float) -> list[RefusedError | UnavailableError | None]:
        futures = []
        failure: Exception | None = None
        for record in records:
            try:
                # The client refuses a record with neither key nor value.
                value = b"" if record.key is None and record.value is None else record.value
                sent = self._producer.send(record.topic, value, record.key, headers=record.headers)
            except kafka_errors.KafkaError as error:  # no metadata, or no room in the buffer
                failure = error
                break
            futures.append(sent)
        outcomes: list[RefusedError | UnavailableError | None] = []
        for future in futures:
            try:
                future.get(timeout=max(0.0, deadline - time.monotonic()))
                outcomes.append(None)
            except _REFUSED as error:
                outcomes.append(RefusedError(_words(error)))
            except kafka_errors.KafkaError as error:
                outcomes.append(UnavailableError(_words(error)))
        outcomes += [UnavailableError(_words(failure)) for _ in records[len(futures) :] if failure]
        return outcomes

    def close(self) -> None:
        """Close after a `send` that was answered: there is nothing left to lose."""
        self._producer.close(timeout=1)

    def abandon(self) -> None:
        """Close now and drop whatever is still unsent."""
        self._producer.close(timeout=0)


class Consumer:
    """One member of a group, from the earliest offset, offsets committed by hand.

    Rebalances happen inside `poll` alone: finish a batch and commit it before the next poll.
    """

    def __init__(self, settings: Settings, *, group: str, node: str, on_assigned: Callable[[list[int]], None]) -> None:
        limits = settings.limits
        self._settings = settings
        self._group = group
        with explained(settings):
            self._consumer = KafkaConsumer(
                bootstrap_servers=list(settings.brokers),
                group_id=group,
                client_id=node,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                session_timeout_ms=int(limits.session_s * 1000),
                heartbeat_interval_ms=int(limits.heartbeat_s * 1000),
                max_poll_records=limits.consume_records,
                partition_assignment_strategy=[RoundRobinPartitionAssignor],
                api_version_auto_timeout_ms=_BOOTSTRAP_MS,
                selector=_Selector,
            )
            self._consumer.subscribe([settings.topic], listener=_Listener(on_assigned))
            # Known before it joins: else its first assignment is empty, and a second rebalance follows.
            self._consumer.partitions_for_topic(settings.topic)

    def poll(self, *, timeout_s: float) -> list[Record]:
        """Read the next records, per partition in order.

        Raises UnavailableError for what passes by itself, BrewError for what doesn't.
        """
        try:
            batches = self._consumer.poll(timeout_ms=int(timeout_s * 1000))
        except _FATAL_FOR_CONSUMER as error:
            if isinstance(error, kafka_errors.InconsistentGroupProtocolError):
                raise BrewError(
                    f"consumer group {self._group} is held by a client with another balancing protocol",
                    hint="stop that client, or let it use the round-robin assignor",
                ) from error
            raise BrewError(f"kafka refused consumer group {self._group}: {_words(error)}") from error
        except kafka_errors.KafkaError as error:
            raise UnavailableError(_words(error)) from error
        return [
            Record(read.topic, read.key, read.value, _headers(read.headers), read.partition, read.offset)
            for batch in batches.values()
            for read in batch
        ]

    def commit(self, records: Sequence[Record]) -> str:
        """Commit the offsets after these records; the reason where Kafka would not.

        A refusal is a redelivery, not an error: the partitions have moved on.
        """
        last = {(record.topic, record.partition): record.offset for record in records}
        offsets = {TopicPartition(*place): OffsetAndMetadata(offset + 1, "") for place, offset in last.items()}
        try:
            self._consumer.commit(offsets)
        except kafka_errors.KafkaError as error:
            return _words(error)
        return ""

    def close(self) -> None:
        """Leave the group, so that its partitions move at once."""
        self._consumer.close(autocommit=False)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Only reports: the client swallows exceptions that are raised here."""

    def __init__(self, on_assigned: Callable[[list[int]], None]) -> None:
        self._on_assigned = on_assigned

    def on_partitions_revoked(self, revoked: object) -> None:
        pass

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        self._on_assigned(sorted(place.partition for place in assigned))


@contextlib.contextmanager
def explained(settings: Settings) -> Iterator[None]:
    """Turn the Kafka client's errors into the user's."""
    where = ",".join(settings.brokers)
    try:
        yield
    except (
        kafka_errors.NoBrokersAvailable,
        kafka_errors.NodeNotReadyError,
        kafka_errors.KafkaConnectionError,
        kafka_errors.KafkaTimeoutError,
        kafka_errors.RequestTimedOutError,
        kafka_errors.UnrecognizedBrokerVersion,
    ) as error:
        hint = "run `brewctl up`, or set BREW_KAFKA_BROKERS"
        raise UnreachableError(f"kafka {where} does not answer", hint=hint) from error
    except kafka_errors.InvalidReplicationFactorError as error:
        raise BrewError(f"kafka {where} has too few brokers for that replication factor") from error
    except kafka_errors.KafkaError as error:
        raise BrewError(f"kafka {where}: {_words(error)}") from error


def _patiently(call: Callable[[], _T]) -> _T:
    """Ask again while the cluster says "not yet", as a fresh one does of its group coordinators."""
    deadline = time.monotonic() + _ADMIN_S
    while True:
        try:
            return call()
        except kafka_errors.KafkaError as error:
            if not error.retriable or time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def _headers(raw: Sequence[tuple[str, bytes | None]]) -> Headers:
    # A null header value can be read but not sent on: it becomes an empty one.
    return [(name, value or b"") for name, value in raw]


def _words(error: Exception | None) -> str:
    text = " ".join(str(error).split())
    name = type(error).__name__ if isinstance(error, Exception) else getattr(error, "__name__", "")
    return (text if name in text else f"{name} {text}".strip())[:300]
