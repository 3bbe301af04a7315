"""Records as they are written into a batch, read back by the library's own reader of batches."""

import time
from collections.abc import Sequence
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.producer.record_accumulator import ProducerBatch
from kafka.record import MemoryRecords, MemoryRecordsBuilder

from brewctl.delivery.broker.kafka_python import batches

Record = tuple[int | None, bytes | None, bytes | None, Sequence[tuple[str, bytes | None]]]
_NOW_MS = 1_700_000_000_000


def made(*records: Record, batch_bytes: int = 1_000_000) -> Any:
    """Put records into a batch; return what was put, and the records that are read from it."""
    batch = ProducerBatch(TopicPartition("t", 0), MemoryRecordsBuilder(2, 0, batch_bytes), None)
    put = [batch.try_append(*record) for record in records]
    batch.records.close()
    batch_read = MemoryRecords(batch.records.buffer()).next_batch()
    assert batch_read.validate_crc()
    return put, [(each.timestamp, each.key, each.value, each.headers) for each in batch_read]


def test_the_library_writes_by_these_functions() -> None:
    assert ProducerBatch.try_append.__module__ == batches.__name__


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 127, 128, 8_191, 8_192, 100_000])
def test_a_part_of_any_length_is_read_as_it_was_written(size: int) -> None:
    part = b"x" * size
    record = (_NOW_MS, part, part, [("held", part), ("n" * size, b"y"), ("", b"")])
    _, read = made(record, record)
    assert read == [record, record]


def test_what_is_absent_stays_absent_and_names_may_be_in_any_script() -> None:
    records: list[Record] = [
        (_NOW_MS, None, b"", [("größe", b"1"), ("none", None)]),
        (_NOW_MS, b"", None, []),
        (_NOW_MS, None, None, []),
    ]
    _, read = made(*records)
    assert read == [*records]


def test_times_go_back_and_forth_within_a_batch() -> None:
    times = [_NOW_MS, _NOW_MS - 5_000_000_000, _NOW_MS + 5_000_000_000, 0]
    _, read = made(*((each, b"k", b"v", []) for each in times))
    assert [each for each, *_ in read] == times


def test_a_record_without_a_time_has_that_of_this_machine() -> None:
    before = int(time.time() * 1000)
    _, [(written, *_)] = made((None, b"k", b"v", []))
    assert before <= written <= time.time() * 1000


def test_more_headers_than_one_byte_counts() -> None:
    record = (_NOW_MS, b"k", b"v", [(f"name-{each}", b"v") for each in range(200)])
    assert made(record)[1] == [record]


def test_a_batch_without_room_takes_no_more_but_one_record_alone() -> None:
    record: Record = (_NOW_MS, b"k", b"v" * 500, [])
    put, read = made(record, record, record, batch_bytes=1_200)
    assert [each is not None for each in put] == [True, True, False]
    assert read == [record, record]
    assert made(record, record, batch_bytes=100)[1] == [record]


def test_each_record_has_its_own_place_once_the_batch_is_acknowledged() -> None:
    batch = ProducerBatch(TopicPartition("t", 3), MemoryRecordsBuilder(2, 0, 1000), None)
    futures = [batch.try_append(_NOW_MS, b"k", b"v", []) for _ in range(3)]
    batch.done(base_offset=40, timestamp_ms=-1)
    assert [(each.get().partition, each.get().offset) for each in futures] == [(3, 40), (3, 41), (3, 42)]
