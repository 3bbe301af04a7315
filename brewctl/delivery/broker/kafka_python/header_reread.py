"""Reading a record's headers a second time, for librdkafka, which can't read header names that are not UTF-8."""

import time

from kafka import KafkaConsumer, TopicPartition

from brewctl.config import Settings
from brewctl.delivery.broker.kafka_python.connection_settings import connection, explained, require_headers
from brewctl.delivery.events import Headers
from brewctl.errors import UnreachableError

_POLL_MS = 500


class Again:
    """A consumer without a group. It keeps the headers of the records after the wanted one: they are often next."""

    def __init__(self, settings: Settings, *, name: str) -> None:
        """Connect. Raises UnreachableError, BrewError."""
        self._settings = settings
        self._found: dict[int, Headers] = {}  # by offset, of one partition
        self._at: TopicPartition | None = None
        with explained(settings):
            self._consumer = KafkaConsumer(
                enable_auto_commit=False,
                auto_offset_reset="none",
                max_partition_fetch_bytes=settings.limits.consume_partition_bytes,
                **connection(settings, name=name),
            )
            require_headers(self._consumer)

    def headers(self, topic: str, partition: int, offset: int) -> Headers:
        """Return the headers of a record. Raises UnreachableError, BrewError."""
        place = TopicPartition(topic, partition)
        if self._at != place or offset not in self._found:
            self._read(place, offset)
        return self._found.pop(offset)

    def _read(self, place: TopicPartition, offset: int) -> None:
        deadline = time.monotonic() + self._settings.limits.kafka_request_s
        with explained(self._settings):
            self._at, self._found = place, {}
            self._consumer.assign([place])
            self._consumer.seek(place, offset)
            while offset not in self._found:
                if time.monotonic() > deadline:
                    raise UnreachableError(f"kafka did not give {place.topic} {place.partition}@{offset} a second time")
                for read in self._consumer.poll(timeout_ms=_POLL_MS).get(place, ()):
                    self._found[read.offset] = read.headers

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close(autocommit=False)
