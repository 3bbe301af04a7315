"""Reading whole topics without a consumer group, on librdkafka."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from brewctl.config import Settings
from brewctl.delivery.broker.failure_reasons import open_transaction
from brewctl.delivery.broker.kafka_python.admin import open_admin
from brewctl.delivery.broker.librdkafka.connection_settings import connection, explained, require_answer
from brewctl.delivery.broker.librdkafka.fetching import fetching
from brewctl.delivery.broker.librdkafka.records import RecordConverter
from brewctl.delivery.broker.record import Record
from brewctl.errors import BrewError, UnreachableError

_POLL_S = 0.5
_NAME = "brewctl"  # the library wants a group's name; without a subscription it does not join that group


class Topics:
    """Reads topics from their beginning, as `reading.Reader` describes it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._reading = RecordConverter(settings, name=_NAME)
        self._positions: dict[int, int] = {}
        self._failure: Exception | None = None
        with explained(settings):
            self._library = Consumer(
                {
                    "group.id": _NAME,
                    "error_cb": lambda _error: None,
                    **fetching(settings),
                    **connection(settings, name=_NAME),
                }
            )
            require_answer(self._library, settings)

    def bounds(self, topic: str, *, since_ms: int | None = None) -> dict[int, tuple[int, int]]:
        """Return, for each partition, its first offset and the offset that the next record will get."""
        # Asked of the administration client: this library's answer ends before the first open transaction.
        with open_admin(self._settings) as admin:
            bounds = admin.ends(topic)
            if since_ms is not None:
                starts = admin.offsets_at(topic, since_ms)
                bounds = {partition: (starts[partition], end) for partition, (_, end) in bounds.items()}
        return bounds

    def read(self, topic: str, ranges: Mapping[int, tuple[int, int]]) -> Iterator[list[Record]]:
        """Yield the records with offsets in each partition's `ranges` (end excluded)."""
        ends = {partition: end for partition, (start, end) in ranges.items() if start < end}
        self._positions = {partition: ranges[partition][0] for partition in ends}
        reached: dict[int, int] = {}

        def hear(message: Any) -> None:
            error = message.error()
            if error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001
                reached[message.partition()] = message.offset()
            else:
                _raise(error, topic)

        places = [TopicPartition(topic, each, at) for each, at in self._positions.items()]
        self._library.assign(places)
        self._library.resume(places)  # partitions that an earlier read has finished are still paused
        limit_s = self._settings.limits.kafka_request_s
        heard = time.monotonic()
        while ends:
            messages = self._library.consume(self._settings.limits.consume_records, 0)
            if not messages and (first := self._library.poll(_POLL_S)) is not None:
                messages = [first]
            read = self._reading.records(topic, messages, hear)
            self._positions |= {record.partition: record.offset + 1 for record in read}
            records = [record for record in read if record.offset < ends.get(record.partition, 0)]
            if records:
                heard = time.monotonic()
                yield records
                heard = max(heard, time.monotonic())
            elif time.monotonic() - heard > limit_s:
                raise self._nothing_more(topic, ends, reached)
            # The last offsets of a partition may be no records but transaction markers.
            at = {each: max(self._positions[each], reached.get(each, 0)) for each in ends}
            if done := [each for each, end in ends.items() if at[each] >= end]:
                for each in done:
                    del ends[each]
                self._library.pause([TopicPartition(topic, each) for each in done])
        self._library.unassign()

    def _nothing_more(self, topic: str, ends: Mapping[int, int], reached: Mapping[int, int]) -> BrewError:
        # In these partitions reading ended before the partition's end: there a transaction is open.
        if held := [each for each in sorted(ends) if each in reached]:
            return open_transaction(topic, held)
        where = ", ".join(f"{each}@{self._positions[each]}" for each in sorted(ends))
        waited_s = self._settings.limits.kafka_request_s
        return UnreachableError(f"kafka {topic} gave nothing more for {waited_s:g} s at {where}")

    def close(self) -> None:
        """Close the connections."""
        self._reading.close()
        self._library.close()


def _raise(error: KafkaError, topic: str) -> None:
    if error.code() == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001
        raise BrewError(f"records of {topic} were removed while they were read", hint="run it again")
    # The library asks for the group's coordinator. A reader does not join the group, so it needs no right to it.
    if error.code() != KafkaError.GROUP_AUTHORIZATION_FAILED:
        raise KafkaException(error)
