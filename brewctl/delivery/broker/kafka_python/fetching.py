"""The library's fetcher, which also reads only committed records and reports lost offsets.

Importing this module replaces the library's fetcher, for every consumer of this process.

A transaction ends with a marker in each partition, which is a batch of its own. Markers are no records, and records of
an aborted transaction must have no effect: both are skipped. Records after the start of an open transaction are not
read before it ends, at the latest after its producer's transaction.timeout.ms.
"""

import struct
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kafka import TopicPartition, errors
from kafka.consumer import fetcher, group
from kafka.record.default_records import DefaultRecordBatch

from brewctl.delivery.broker.overtaken import Overtaken
from brewctl.delivery.broker.record import Record

_PRODUCER_ID = 9  # index in a batch's header
_MARKER = struct.Struct(">hh")  # the key of a marker: version, type
_ABORT = 0
# Indexes in a partition's part of a fetch response, version 4: last stable offset, aborted transactions.
_STABLE, _ABORTED_TRANSACTIONS = 2, 3


@dataclass(frozen=True, slots=True)
class _Nothing:
    """Stands for a batch that is skipped: the library goes on after its last offset."""

    base_offset: int
    last_offset_delta: int

    def __iter__(self) -> Iterator[Any]:
        return iter(())


class _Committed:
    """The batches of one response, without markers and aborted records."""

    def __init__(self, batches: Any, aborted: Sequence[tuple[int, int]]) -> None:
        """`aborted`: producer id and first offset of each aborted transaction that may have records in the batches."""
        self._batches = batches
        self._aborted = deque(sorted(aborted, key=lambda each: each[1]))
        self._aborting: set[int] = set()  # ids of producers whose records here are of an aborted transaction

    def next_batch(self) -> Any:
        """Return the next batch; None after the last."""
        batch = self._batches.next_batch()
        if not isinstance(batch, DefaultRecordBatch) or not batch.is_transactional:
            return batch
        producer = batch._header_data[_PRODUCER_ID]  # noqa: SLF001 - not public
        while self._aborted and self._aborted[0][1] <= batch.base_offset + batch.last_offset_delta:
            self._aborting.add(self._aborted.popleft()[0])
        if batch.is_control_batch:
            if _is_abort(batch):
                self._aborting.discard(producer)
        elif producer not in self._aborting:
            return batch
        return _Nothing(batch.base_offset, batch.last_offset_delta)


def _is_abort(marker: DefaultRecordBatch) -> bool:
    key = next(iter(marker)).key
    return bool(_MARKER.unpack_from(key)[1] == _ABORT)


class Fetcher(fetcher.Fetcher):  # type: ignore[misc]
    """Reads committed records, and notes partitions that do not have the wanted offset any more."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._isolation_level = fetcher.READ_COMMITTED
        self._aborted: Sequence[tuple[int, int]] = ()
        self._gone: dict[TopicPartition, int] = {}
        self.overtaken: list[Overtaken] = []  # partitions in which reading begins after removed records
        # The last stable offset of each partition: it can be read up to there, because of open transactions.
        self.stable: dict[TopicPartition, int] = {}

    def _handle_fetch_response(self, request: Any, send_time: float, response: Any) -> None:
        """Drop the partitions of a response that have neither records nor an error, which most have not."""
        for topic, partitions in response.topics:
            for number, code, *answer in partitions:
                if not code and not answer[-1]:
                    self.stable[TopicPartition(topic, number)] = answer[_STABLE - 1]
            partitions[:] = [each for each in partitions if each[1] or each[-1]]
        super()._handle_fetch_response(request, send_time, response)

    def _parse_fetched_data(self, completed_fetch: Any) -> Any:
        code, *_ = answer = completed_fetch.partition_data
        self._aborted = answer[_ABORTED_TRANSACTIONS] or ()
        place = completed_fetch.topic_partition
        self.stable[place] = answer[_STABLE]
        parsed = super()._parse_fetched_data(completed_fetch)
        state = self._subscriptions.assignment.get(place)
        if code == errors.OffsetOutOfRangeError.errno and state and state.awaiting_reset:
            self._gone[place] = completed_fetch.fetched_offset
        return parsed

    def _unpack_message_set(self, tp: TopicPartition, records: Any) -> Iterator[Record]:
        """Make records of ours. The library's own, with the size of each part, would double the time."""
        topic, partition = tp
        batches = _Committed(records, self._aborted)
        while (batch := batches.next_batch()) is not None:
            if (last := getattr(batch, "last_offset_delta", None)) is not None:  # a batch of Kafka 0.10 lacks it
                self._subscriptions.assignment[tp].last_offset_from_message_batch = batch.base_offset + last
            for read in batch:
                headers = read.headers
                # A null header value can be read but not sent on: it becomes an empty one.
                for _, value in headers:
                    if value is None:
                        headers = [(name, value or b"") for name, value in headers]
                        break
                yield Record(topic, read.key, read.value, headers, partition, read.offset, read.timestamp)

    def _reset_offset(self, partition: TopicPartition) -> None:
        super()._reset_offset(partition)
        state = self._subscriptions.assignment.get(partition)
        if not state or not state.has_valid_position:
            return
        first = state.position
        wanted = self._gone.pop(partition, None)
        if wanted is not None or first > 0:  # else there was no committed offset, and nothing was removed
            self.overtaken.append(Overtaken(partition.partition, wanted, first))


group.Fetcher = Fetcher
