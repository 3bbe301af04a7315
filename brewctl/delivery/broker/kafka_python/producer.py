"""Sending on kafka-python-ng: `outcomes` sends the batches, and each record gets its own outcome."""

import threading
import time
from collections.abc import Sequence
from typing import Any

from kafka import KafkaProducer, TopicPartition, errors

from brewctl.config import Settings
from brewctl.delivery.broker.kafka_python.connection_settings import (
    FORBIDDEN,
    connection,
    explained,
    require_headers,
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
from brewctl.delivery.broker.partitions import partition_for
from brewctl.delivery.broker.record import BATCH_BYTES, DEAD_LETTER_BYTES, UNCOMPRESSED_BYTES, Record

_NEVER_MS = 3_600_000


class InvalidRecordError(errors.BrokerResponseError):  # type: ignore[misc]
    """Kafka's error 87. The library does not know it, and would raise UnknownError, which may be transient."""

    errno = 87
    message = "INVALID_RECORD"
    description = "The record failed the broker's validation, such as one without a key in a compacted topic."


errors.kafka_errors.setdefault(InvalidRecordError.errno, InvalidRecordError)
# Errors of a record that a broker will never accept.
_REFUSED = (
    errors.MessageSizeTooLargeError,
    errors.RecordListTooLargeError,
    errors.InvalidTopicError,
    errors.UnsupportedForMessageFormatError,
    errors.PolicyViolationError,
    errors.kafka_errors[InvalidRecordError.errno],
)


class Wire:
    """Sends with one request in flight, so that retries keep the order. Nothing is sent before `outcomes`."""

    def __init__(self, settings: Settings, *, node: str, compressed: bool) -> None:
        most = UNCOMPRESSED_BYTES if compressed else DEAD_LETTER_BYTES
        self._small = most // 8  # a record of about this size surely fits, without an exact look
        self._room_ms = int(settings.limits.kafka_metadata_s * 1000)
        with explained(settings):
            self._producer = KafkaProducer(
                acks="all",
                retries=1_000_000,  # the deadline of `outcomes` ends them
                max_in_flight_requests_per_connection=1,
                batch_size=BATCH_BYTES,
                linger_ms=_NEVER_MS,  # `outcomes` sends the batches
                request_timeout_ms=int(settings.limits.kafka_request_s * 1000),
                max_block_ms=self._room_ms,
                # The limit before compression. The broker applies the topic's own limit after it.
                max_request_size=most,
                compression_type="gzip" if compressed else None,
                **connection(settings, name=node),
            )
            require_headers(self._producer)

    def partitions(self, topic: str) -> int:
        """Return how many partitions a topic has."""
        try:
            return len(self._producer.partitions_for(topic))
        except errors.KafkaError as error:  # no metadata in time
            raise UnsentError(f"topic {topic}: {words(self._forbidden() or error)}") from error

    def _forbidden(self) -> Exception | None:
        """Return the error if this user has no right to the metadata. `partitions_for` only times out then."""
        asked, answered = self._producer._metadata.request_update(), threading.Event()  # noqa: SLF001
        asked.add_both(lambda *_: answered.set())
        self._producer._sender.wakeup()  # noqa: SLF001
        answered.wait(self._room_ms / 1000 / 4)
        error: Exception | None = asked.exception
        return error if isinstance(error, FORBIDDEN) else None

    def put(self, record: Record, partitions: int, deadline: float) -> Any:  # noqa: ARG002 - waits for _room_ms
        """Put a record into the next batch of its partition."""
        # Instead of the library's `send`, which checks every part of a record: only the size of ours can be wrong.
        topic, key, value, headers, _, _, timestamp_ms = record
        rough = len(key or b"") + len(value or b"")
        for name, held in headers:
            rough += 2 + len(name) + len(held)
        producer = self._producer
        try:
            if rough > self._small:
                size = producer._estimate_size_in_bytes(key, value, headers)  # noqa: SLF001 - as all below
                producer._ensure_valid_record_size(size)  # noqa: SLF001
            if key is None:
                partition = producer._partition(topic, None, None, None, None, None)  # noqa: SLF001
            else:
                partition = partition_for(key, partitions)
            place = TopicPartition(topic, partition)
            time_ms = None if timestamp_ms < 0 else timestamp_ms
            append = producer._accumulator.append  # noqa: SLF001
            future, is_full, _ = append(place, time_ms, key, value, headers, self._room_ms)
        except errors.MessageSizeTooLargeError as error:
            return RefusedError(words(error))
        except errors.KafkaError as error:  # no room in the buffer
            raise UnsentError(f"topic {topic}: {words(error)}") from error
        if is_full:
            producer._sender.wakeup()  # noqa: SLF001
        return future

    def outcomes(self, sent: Sequence[Any], records: Sequence[Record], deadline: float) -> list[Outcome]:
        """Send the records that were put, and return the outcome of each."""
        # Not by the library's public flush: it hides failures, and applies its timeout to each partition anew.
        flushing = self._producer._accumulator  # noqa: SLF001
        flushing.begin_flush()
        try:
            self._producer._sender.wakeup()  # noqa: SLF001
            return [_outcome(future, record, deadline) for future, record in zip(sent, records, strict=True)]
        finally:
            flushing._flushes_in_progress.decrement()  # noqa: SLF001

    def close(self) -> None:
        """Close it. No record may be unacknowledged."""
        self._producer.close(timeout=1)

    def abandon(self) -> None:
        """Close it, and drop the records that are not acknowledged."""
        self._producer.close(timeout=0)


def _outcome(sent: Any, record: Record, deadline: float) -> Outcome:
    if isinstance(sent, Outcome):
        return sent
    try:
        metadata = sent.get(timeout=max(0.0, deadline - time.monotonic()))
    except _REFUSED as error:
        return RefusedError(words(error))
    except errors.InvalidTimestampError:
        return refused_time(record)
    except errors.KafkaError as error:
        return UnavailableError(words(error))
    return Place(metadata.partition, metadata.offset)
