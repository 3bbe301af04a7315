"""Reading whole topics without a consumer group, on kafka-python-ng."""

import time
from collections.abc import Iterator, Mapping

from kafka import KafkaConsumer, TopicPartition, errors

from brewctl.config import Settings
from brewctl.delivery.broker.failure_reasons import absent, open_transaction
from brewctl.delivery.broker.kafka_python.admin import open_admin
from brewctl.delivery.broker.kafka_python.connection_settings import connection, explained, require_headers
from brewctl.delivery.broker.record import Record
from brewctl.errors import BrewError, UnreachableError

_POLL_MS = 500


class Topics:
    """Reads topics from their beginning, as `reading.Reader` describes it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        with explained(settings):
            self._consumer = KafkaConsumer(
                enable_auto_commit=False,
                auto_offset_reset="none",  # any other value would skip to an end silently if records are removed
                max_poll_records=settings.limits.consume_records,
                max_partition_fetch_bytes=settings.limits.consume_partition_bytes,
                request_timeout_ms=int(settings.limits.kafka_admin_s * 1000),
                **connection(settings, name="brewctl"),
            )
            require_headers(self._consumer)

    def bounds(self, topic: str, *, since_ms: int | None = None) -> dict[int, tuple[int, int]]:
        """Return, for each partition, its first offset and the offset that the next record will get."""
        partitions = self._consumer.partitions_for_topic(topic)
        if not partitions:
            with open_admin(self._settings) as admin:
                admin.describe(topic)  # raises if this user has no right to see the topic
            raise absent(topic)
        places = [TopicPartition(topic, partition) for partition in sorted(partitions)]
        starts = self._consumer.beginning_offsets(places)
        ends = self._consumer.end_offsets(places)
        if since_ms is not None:
            found = self._consumer.offsets_for_times(dict.fromkeys(places, since_ms))
            starts = {place: first.offset if first else ends[place] for place, first in found.items()}
        return {place.partition: (starts[place], ends[place]) for place in places}

    def read(self, topic: str, ranges: Mapping[int, tuple[int, int]]) -> Iterator[list[Record]]:
        """Yield the records with offsets in each partition's `ranges` (end excluded)."""
        ends = {TopicPartition(topic, partition): end for partition, (start, end) in ranges.items() if start < end}
        self._consumer.assign(list(ends))
        for place in ends:
            self._consumer.seek(place, ranges[place.partition][0])
        limit_s = self._settings.limits.kafka_request_s
        heard = time.monotonic()
        while ends:
            try:
                batches = self._consumer.poll(timeout_ms=_POLL_MS)
            except errors.OffsetOutOfRangeError as error:
                raise BrewError(f"records of {topic} were removed while they were read", hint="run it again") from error
            records = [
                record for place, batch in batches.items() for record in batch if record.offset < ends.get(place, 0)
            ]
            if records:
                heard = time.monotonic()
                yield records
                heard = max(heard, time.monotonic())
            elif time.monotonic() - heard > limit_s:
                raise self._nothing_more(topic, ends)
            # Positions also count offsets that are no records, such as transaction markers.
            if done := [place for place, end in ends.items() if self._consumer.position(place) >= end]:
                for place in done:
                    del ends[place]
                self._consumer.assign(list(ends))

    def _nothing_more(self, topic: str, ends: Mapping[TopicPartition, int]) -> BrewError:
        positions = {place: self._consumer.position(place) for place in sorted(ends)}
        stable = self._consumer._fetcher.stable  # noqa: SLF001 - see `fetching.Fetcher`
        if held := [place.partition for place, at in positions.items() if at == stable.get(place)]:
            return open_transaction(topic, held)
        where = ", ".join(f"{place.partition}@{at}" for place, at in positions.items())
        waited_s = self._settings.limits.kafka_request_s
        return UnreachableError(f"kafka {topic} gave nothing more for {waited_s:g} s at {where}")

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close(autocommit=False)
