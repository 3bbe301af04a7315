"""Sending: the library's producer, which sends when it is told to, with each record's own outcome."""

import time
from collections.abc import Sequence
from typing import Any

from kafka import KafkaProducer, errors

from brewctl.config import Settings
from brewctl.delivery.broker.kafka_python.client import connection, explained, require_headers, words
from brewctl.delivery.broker.outcomes import (
    Outcome,
    Place,
    RefusedError,
    UnavailableError,
    UnsentError,
    refused_time,
)
from brewctl.delivery.broker.record import BATCH_BYTES, DEAD_LETTER_BYTES, UNCOMPRESSED_BYTES, Record

_NEVER_MS = 3_600_000


class InvalidRecordError(errors.BrokerResponseError):  # type: ignore[misc]
    """Error 87, which the client does not know: it would say UnknownError, which may be transient."""

    errno = 87
    message = "INVALID_RECORD"
    description = "The record failed the broker's validation, such as one without a key in a compacted topic."


errors.kafka_errors.setdefault(InvalidRecordError.errno, InvalidRecordError)
# What a broker will never accept, however often it is asked.
_REFUSED = (
    errors.MessageSizeTooLargeError,
    errors.RecordListTooLargeError,
    errors.InvalidTopicError,
    errors.UnsupportedForMessageFormatError,
    errors.PolicyViolationError,
    errors.kafka_errors[InvalidRecordError.errno],
)


class Wire:
    """Sends with one request in flight, when `outcomes` says so."""

    def __init__(self, settings: Settings, *, node: str, compressed: bool) -> None:
        with explained(settings):
            self._producer = KafkaProducer(
                acks="all",
                retries=1_000_000,  # our own deadline ends them
                max_in_flight_requests_per_connection=1,
                batch_size=BATCH_BYTES,
                linger_ms=_NEVER_MS,  # `outcomes` says when
                request_timeout_ms=int(settings.limits.kafka_request_s * 1000),
                max_block_ms=int(settings.limits.kafka_metadata_s * 1000),
                # Before compression; the topic's own limit, after it, is the broker's to apply.
                max_request_size=UNCOMPRESSED_BYTES if compressed else DEAD_LETTER_BYTES,
                compression_type="gzip" if compressed else None,
                **connection(settings, name=node),
            )
            require_headers(self._producer)

    def partitions(self, topic: str) -> int:
        """Return how many partitions a topic has."""
        try:
            return len(self._producer.partitions_for(topic))
        except errors.KafkaError as error:  # no metadata
            raise UnsentError(f"topic {topic}: {words(error)}") from error

    def put(self, record: Record, partition: int | None, deadline: float) -> Any:
        """Put a record into the next batch of its partition."""
        # The library refuses a record with neither key nor value.
        value = b"" if record.key is None and record.value is None else record.value
        try:
            future = self._producer.send(
                record.topic,
                value,
                record.key,
                headers=record.headers,
                partition=partition,
                timestamp_ms=None if record.timestamp_ms < 0 else record.timestamp_ms,
            )
        except errors.KafkaError as error:  # no metadata, or no room in the buffer
            raise UnsentError(f"topic {record.topic}: {words(error)}") from error
        return _outcome(future, record, deadline) if future.is_done else future  # too large even for the library

    def outcomes(self, sent: Sequence[Any], records: Sequence[Record], deadline: float) -> list[Outcome]:
        """Send what was put, and return the outcome of each record."""
        # The library's public flush hides failures, and waits for each partition anew.
        flushing = self._producer._accumulator  # noqa: SLF001
        flushing.begin_flush()
        try:
            self._producer._sender.wakeup()  # noqa: SLF001
            return [_outcome(future, record, deadline) for future, record in zip(sent, records, strict=True)]
        finally:
            flushing._flushes_in_progress.decrement()  # noqa: SLF001

    def close(self) -> None:
        """Close it, with nothing on its way."""
        self._producer.close(timeout=1)

    def abandon(self) -> None:
        """Close it, and drop what is on its way."""
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
