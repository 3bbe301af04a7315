"""Sending: each record's own acknowledgement, or the reason why there is none."""

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from kafka import KafkaProducer, errors

from brewctl import log
from brewctl.config import Settings
from brewctl.delivery.broker.client import (
    DEAD_LETTER_BYTES,
    Record,
    UnavailableError,
    connection,
    explained,
    require_headers,
    words,
)
from brewctl.delivery.broker.partitions import partition_for

logger = log.get(__name__)

# Kafka's default limit for a batch is 1 MiB.
BATCH_BYTES = 1_000_000
_NEVER_MS = 3_600_000
_HELD = "an earlier record with its key was not taken"
_UNCOMPRESSED_BYTES = 32 * 1024 * 1024
_TOPIC_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")


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


class RefusedError(Exception):
    """Kafka will never take this record. The message is its reason."""


class UnsentError(UnavailableError):
    """The record is not on its way, and others may be sent meanwhile: Kafka does not have its topic now."""


class ClockError(UnsentError):
    """The record's time is too far from the broker's clock: it is no fault of the record, and time mends it."""


class HeldError(UnsentError):
    """An earlier record with this one's key was not taken: this one must not overtake it."""


class Place(NamedTuple):
    """Where an acknowledged record is, in its topic."""

    partition: int
    offset: int


Outcome = Place | RefusedError | UnavailableError


class Producer:
    """Sends records with acks from all in-sync replicas, one request in flight, in order per partition.

    What one `send` has for a partition leaves in one batch, as far as it fits into BATCH_BYTES, and Kafka takes a
    batch whole or not at all. `ordered`: once a record is not taken, no later one with its key is. `compressed` also
    takes large records that compression makes fit. Delivery: at least once. Raises UnreachableError where no broker
    answers now.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        node: str,
        ordered: bool = True,
        compressed: bool = False,
        seen: dict[str, int] | None = None,
    ) -> None:
        """Connect. `seen`: how many partitions topics had, kept by who makes one producer after another."""
        self._ordered = ordered
        self._seen = {} if seen is None else seen
        with explained(settings):
            self._producer = KafkaProducer(
                acks="all",
                retries=1_000_000,  # our own deadline ends them
                max_in_flight_requests_per_connection=1,
                batch_size=BATCH_BYTES,
                linger_ms=_NEVER_MS,  # `send` says when
                request_timeout_ms=int(settings.limits.kafka_request_s * 1000),
                max_block_ms=int(settings.limits.kafka_metadata_s * 1000),
                # Before compression; the topic's own limit, after it, is the broker's to apply.
                max_request_size=_UNCOMPRESSED_BYTES if compressed else DEAD_LETTER_BYTES,
                compression_type="gzip" if compressed else None,
                **connection(settings, name=node),
            )
            require_headers(self._producer)

    def send(self, records: Sequence[Record], *, timeout_s: float) -> list[Outcome]:
        """Send, then await each record's own acknowledgement; its place for each that has it.

        At most about `timeout_s` + kafka_metadata_s seconds. After an UnavailableError that is no UnsentError records
        may still be on their way: `abandon` this producer, so that none can arrive after a later try.
        """
        deadline = time.monotonic() + timeout_s
        outcomes = self._send(records, deadline)
        if len(records) == 1:
            return outcomes
        # A refusal names a whole batch: ask again for each alone, so that only the guilty is refused.
        stopped: set[tuple[str, bytes | None]] = set()
        for position, (record, outcome) in enumerate(zip(records, outcomes, strict=True)):
            if isinstance(outcome, RefusedError):
                place = (record.topic, record.key)
                outcomes[position] = HeldError(_HELD) if place in stopped else self._send([record], deadline)[0]
                if self._holds(record) and not isinstance(outcomes[position], Place):
                    stopped.add(place)
        return outcomes

    def _send(self, records: Sequence[Record], deadline: float) -> list[Outcome]:
        sent: list[Any] = []
        failures: dict[str, Outcome] = {}
        stopped: set[tuple[str, bytes | None]] = set()
        partitions: dict[str, int] = {}
        for record in records:
            if not _TOPIC_NAME.fullmatch(record.topic):  # the client would look for it for ever
                failures[record.topic] = RefusedError(f"no topic can be called {record.topic[:80]!r}")
            elif time.monotonic() > deadline:
                failures.setdefault(record.topic, UnavailableError("the time was up before it was sent"))
            # A topic that can't be sent to must not hold back the others.
            if record.topic in failures:
                sent.append(failures[record.topic])
                continue
            if (record.topic, record.key) in stopped:
                sent.append(HeldError(_HELD))
                continue
            # The client refuses a record with neither key nor value.
            value = b"" if record.key is None and record.value is None else record.value
            try:
                future = self._producer.send(
                    record.topic,
                    value,
                    record.key,
                    headers=record.headers,
                    partition=self._place(record, partitions),
                    timestamp_ms=None if record.timestamp_ms < 0 else record.timestamp_ms,
                )
            except errors.KafkaError as error:  # no metadata, or no room in the buffer
                failures[record.topic] = UnsentError(f"topic {record.topic}: {words(error)}")
                sent.append(failures[record.topic])
                continue
            sent.append(future)
            if future.is_done and self._holds(record):  # too large even for the client
                stopped.add((record.topic, record.key))
        # The client's public flush hides failures, and waits for each partition anew.
        flushing = self._producer._accumulator  # noqa: SLF001
        flushing.begin_flush()
        try:
            self._producer._sender.wakeup()  # noqa: SLF001
            return [_outcome(future, record, deadline) for future, record in zip(sent, records, strict=True)]
        finally:
            flushing._flushes_in_progress.decrement()  # noqa: SLF001

    def _holds(self, record: Record) -> bool:
        """Say whether others have to wait behind a record that is not taken."""
        return self._ordered and record.key is not None

    def _place(self, record: Record, partitions: dict[str, int]) -> int | None:
        """Say where a record belongs; None: the client may choose. Raises what the client raises without metadata."""
        if record.key is None:
            return None
        if record.topic not in partitions:
            partitions[record.topic] = len(self._producer.partitions_for(record.topic))
            self._compare(record.topic, partitions[record.topic])
        return partition_for(record.key, partitions[record.topic])

    def _compare(self, topic: str, partitions: int) -> None:
        """Say so where a topic has not as many partitions as before: keys move."""
        before = self._seen.setdefault(topic, partitions)
        self._seen[topic] = partitions
        if partitions > before:
            hint = "later events of a key may be in another partition than earlier ones"
            logger.warning("partitions_added", topic=topic, before=before, partitions=partitions, hint=hint)
        elif partitions < before:
            hint = "it was made anew, and its records are gone: see `brewctl outbox republish --missing --dry-run`"
            logger.error("partitions_fewer", topic=topic, before=before, partitions=partitions, hint=hint)

    def close(self) -> None:
        """Close after a `send` that was answered: there is nothing left to lose."""
        self._producer.close(timeout=1)

    def abandon(self) -> None:
        """Close now and drop whatever is still unsent."""
        self._producer.close(timeout=0)


def _outcome(sent: Any, record: Record, deadline: float) -> Outcome:
    if isinstance(sent, Outcome):
        return sent
    try:
        metadata = sent.get(timeout=max(0.0, deadline - time.monotonic()))
    except _REFUSED as error:
        return RefusedError(words(error))
    except errors.InvalidTimestampError:
        time_ms = time.time() * 1000 if record.timestamp_ms < 0 else record.timestamp_ms
        when = datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")
        return ClockError(f"topic {record.topic}: {when} is too far from the broker's clock to be a record's time")
    except errors.KafkaError as error:
        return UnavailableError(words(error))
    return Place(metadata.partition, metadata.offset)
