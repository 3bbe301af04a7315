"""Sending: each record's own acknowledgement, or the reason why there is none."""

import time
from collections.abc import Sequence
from typing import Any

from kafka import KafkaProducer, errors

from brewctl.config import Settings
from brewctl.delivery.broker.client import (
    DEAD_LETTER_BYTES,
    Record,
    UnavailableError,
    connection,
    explained,
    words,
)

_UNCOMPRESSED_BYTES = 32 * 1024 * 1024
# What a broker will never accept, however often it is asked.
_REFUSED = (
    errors.MessageSizeTooLargeError,
    errors.RecordListTooLargeError,
    errors.InvalidTopicError,
    errors.InvalidTimestampError,
    errors.PolicyViolationError,
)


class RefusedError(Exception):
    """Kafka will never take this record. The message is its reason."""


class Producer:
    """Sends records with acks from all in-sync replicas, one request in flight, in order per partition.

    `compressed` also takes large records that compression makes fit. Delivery: at least once.
    Raises UnreachableError where no broker answers now.
    """

    def __init__(self, settings: Settings, *, node: str, compressed: bool = False) -> None:
        with explained(settings):
            self._producer = KafkaProducer(
                acks="all",
                retries=1_000_000,  # our own deadline ends them
                max_in_flight_requests_per_connection=1,
                request_timeout_ms=int(settings.limits.kafka_request_s * 1000),
                max_block_ms=int(settings.limits.kafka_metadata_s * 1000),
                # Before compression; the topic's own limit, after it, is the broker's to apply.
                max_request_size=_UNCOMPRESSED_BYTES if compressed else DEAD_LETTER_BYTES,
                compression_type="gzip" if compressed else None,
                **connection(settings, name=node),
            )

    def send(self, records: Sequence[Record], *, timeout_s: float) -> list[RefusedError | UnavailableError | None]:
        """Send, then await each record's own acknowledgement; None for each that has it.

        At most about `timeout_s` + kafka_metadata_s seconds. After an UnavailableError the records may still
        be on their way: `abandon` this producer, so that none can arrive after a later try.
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
        sent: list[Any] = []
        failures: dict[str, errors.KafkaError] = {}
        for record in records:
            # A topic that can't be sent to must not hold back the others.
            if record.topic in failures:
                sent.append(failures[record.topic])
                continue
            # The client refuses a record with neither key nor value.
            value = b"" if record.key is None and record.value is None else record.value
            try:
                sent.append(self._producer.send(record.topic, value, record.key, headers=record.headers))
            except errors.KafkaError as error:  # no metadata, or no room in the buffer
                failures[record.topic] = error
                sent.append(error)
        return [_outcome(future, deadline) for future in sent]

    def close(self) -> None:
        """Close after a `send` that was answered: there is nothing left to lose."""
        self._producer.close(timeout=1)

    def abandon(self) -> None:
        """Close now and drop whatever is still unsent."""
        self._producer.close(timeout=0)


def _outcome(sent: Any, deadline: float) -> RefusedError | UnavailableError | None:
    try:
        if isinstance(sent, errors.KafkaError):
            raise sent
        sent.get(timeout=max(0.0, deadline - time.monotonic()))
    except _REFUSED as error:
        return RefusedError(words(error))
    except errors.KafkaError as error:
        return UnavailableError(words(error))
    return None
