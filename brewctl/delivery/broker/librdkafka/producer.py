"""Sending: records go into the library's queue, a flush sends them, and each record gets its own outcome."""

import contextlib
import time
from collections.abc import Collection, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from brewctl.config import Settings
from brewctl.delivery.broker.librdkafka.connection_settings import (
    Refusals,
    connection,
    error_of,
    explained,
    require_answer,
    within,
    words,
)
from brewctl.delivery.broker.outcomes import (
    Outcome,
    Place,
    RefusedError,
    UnavailableError,
    UnsentError,
    refused_time,
)
from brewctl.delivery.broker.record import BATCH_BYTES, DEAD_LETTER_BYTES, UNCOMPRESSED_BYTES, Record

_BATCH_RECORDS = 1_000_000  # out of reach: the limit in bytes ends a batch first
_NEVER_MS = 60_000
_BY_KEY = -1
_FULL_S = 0.1
_LEADER_S = 0.5  # between two questions for a topic's leaders, and the wait for one answer
_CLOSE_S = 2.0
# Errors of a record that a broker will never accept.
_REFUSED = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
        KafkaError.POLICY_VIOLATION,
        KafkaError.INVALID_RECORD,
        KafkaError._INVALID_DIFFERENT_RECORD,  # noqa: SLF001 - of another record in the batch: `sending` sends each again, alone
    }
)
_ABSENT = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001
        KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001
    }
)
# Errors of records that were dropped from the queue when the library ended this producer.
_GIVEN_UP = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})  # noqa: SLF001


class _Delivery:
    """The outcome of one record: the library calls this with it."""

    __slots__ = ("error", "place")

    def __init__(self) -> None:
        self.error: KafkaError | None = None
        self.place: Place | None = None

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.place = Place(message.partition(), message.offset())  # type: ignore[arg-type]
        else:
            self.error = error


class Wire:
    """Sends idempotently: the library's own retries neither duplicate nor reorder records."""

    def __init__(self, settings: Settings, *, node: str, compressed: bool) -> None:
        limits = settings.limits
        self._metadata_s = limits.kafka_metadata_s
        self._age_s = limits.kafka_metadata_age_s
        self._closed = False
        self._known: dict[str, tuple[int, float]] = {}  # topic → partitions, and until when that holds
        self._refusals = Refusals(settings)
        with explained(settings):
            self._producer = Producer(
                {
                    "acks": "all",
                    "enable.idempotence": True,
                    # Only the flush in `outcomes` sends a batch: it has all records of a send for one partition.
                    "linger.ms": _NEVER_MS,
                    "batch.size": BATCH_BYTES,
                    "batch.num.messages": _BATCH_RECORDS,
                    # The limit before compression. The broker applies the topic's own limit after it.
                    "message.max.bytes": UNCOMPRESSED_BYTES if compressed else DEAD_LETTER_BYTES,
                    "partitioner": "murmur2_random",  # Kafka's own rule, the same as `partitions.partition_for`
                    "compression.type": "gzip" if compressed else "none",
                    # How long the library looks for an unknown topic. `partitions` has found the topic just before.
                    "topic.metadata.propagation.max.ms": int(limits.kafka_metadata_s * 1000),
                    "error_cb": self._hear,
                    **connection(settings, name=node),
                }
            )
        require_answer(self._producer, settings)

    def _hear(self, error: KafkaError) -> None:
        """Take an error of a connection. Errors of records come with each record's own outcome."""
        self._refusals.hear(error)

    def partitions(self, topic: str) -> int:
        """Return how many partitions a topic has. The answer is at most kafka_metadata_age_s seconds old."""
        count, until = self._known.get(topic, (0, 0.0))
        if time.monotonic() < until:
            return count
        try:
            found = self._producer.list_topics(topic, timeout=self._metadata_s).topics[topic]
        except KafkaException as raised:
            raise UnavailableError(words(error_of(raised))) from raised
        if found.error is not None or not found.partitions:
            self._known.pop(topic, None)
            said = words(found.error) if found.error else "it has no partitions"
            raise UnsentError(f"topic {topic}: {said}")
        self._known[topic] = len(found.partitions), time.monotonic() + self._age_s
        return len(found.partitions)

    def put(self, record: Record, partitions: int, deadline: float) -> Any:  # noqa: ARG002 - the library chooses the partition
        """Put a record into the next batch of its partition."""
        topic, key, value, _, _, _, timestamp_ms = record
        headers: Any = record.headers
        delivery = _Delivery()
        while True:
            try:
                self._producer.produce(
                    topic,
                    value,
                    key,
                    _BY_KEY,
                    on_delivery=delivery,
                    timestamp=0 if timestamp_ms < 0 else max(1, timestamp_ms),  # 0 is the library's "now"
                    headers=headers,
                )
                return delivery
            except BufferError:
                # The queue is full: some records have to be sent first.
                if time.monotonic() > deadline:
                    raise UnsentError(f"topic {topic}: no room before the time was up") from None
                self._flush(_FULL_S)
            except KafkaException as raised:
                error = error_of(raised)
                if error.code() == KafkaError._FATAL:  # noqa: SLF001 - a flush tells the cause
                    raise UnavailableError(self._flush(0) or words(error)) from raised
                outcome = self._outcome(error, record)
                if isinstance(outcome, RefusedError):  # too large even for the library
                    return outcome
                raise outcome from raised

    def outcomes(self, sent: Sequence[Any], records: Sequence[Record], deadline: float) -> list[Outcome]:
        """Send the records that were put, and return the outcome of each."""
        why = self._flush_until(deadline, {record.topic for record in records}) or "not acknowledged in time"
        found: list[Outcome] = []
        for put, record in zip(sent, records, strict=True):
            if not isinstance(put, _Delivery):
                found.append(put)
            elif put.place:
                found.append(put.place)
            elif put.error and put.error.code() in _GIVEN_UP:
                found.append(UnavailableError(why))
            elif put.error:
                found.append(self._outcome(put.error, record))
            else:
                found.append(UnavailableError(why))
        return found

    def _flush_until(self, deadline: float, topics: Collection[str]) -> str:
        """Flush until all records are acknowledged or the time is up; return what `_flush` returns.

        A record without an acknowledgement may wait for a broker that has died. A producer that was never connected to
        that broker asks for the new leader only when its metadata are old. So this asks, every _LEADER_S seconds.
        """

        def left_s() -> float:
            return min(_LEADER_S, deadline - time.monotonic())

        while not (why := self._flush(left_s())) and len(self._producer) and left_s() > 0:
            for topic in topics:
                if (wait_s := left_s()) > 0:
                    with contextlib.suppress(KafkaException):
                        self._producer.list_topics(topic, timeout=wait_s)
        return why

    def _flush(self, timeout_s: float) -> str:
        """Send the queued records and collect outcomes. Return why the library ended this producer, else ""."""
        self._refusals.renew(self._producer)
        try:
            self._producer.flush(max(0.0, timeout_s))
        except KafkaException as raised:  # fatal, such as a gap in the sequence of batches
            return words(error_of(raised))
        except SystemError as raised:  # the same error, raised while the library called a _Delivery
            if not isinstance(raised.__cause__, KafkaException):
                raise
            return words(error_of(raised.__cause__))
        return ""

    def _outcome(self, error: KafkaError, record: Record) -> RefusedError | UnavailableError:
        code = error.code()
        if code in _REFUSED:
            return RefusedError(words(error))
        if code == KafkaError.INVALID_TIMESTAMP:
            return refused_time(record)
        if code in _ABSENT:
            self._known.pop(record.topic, None)
            return UnsentError(f"topic {record.topic}: {words(error)}")
        return UnavailableError(words(error))

    def close(self) -> None:
        """Close it. No record may be unacknowledged."""
        self.abandon()

    def abandon(self) -> None:
        """Close it, and drop the records that are not acknowledged.

        They are dropped first because the library's close would wait for them without end.
        """
        if self._closed:
            return
        self._closed = True

        def close() -> None:
            self._producer.purge()
            self._producer.close()

        try:
            within(close, lambda done: done.wait(_CLOSE_S))
        except (TimeoutError, KafkaException):
            return  # the close goes on in its thread, with nothing left to send
