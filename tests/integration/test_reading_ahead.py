"""A consumer reads the next batch while PostgreSQL works on one: never a third, in order, offsets last."""

import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence

import pytest
from kafka import KafkaProducer

from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.broker import Consumer, Record
from brewctl.delivery.broker.kafka_python.connection_settings import connection
from brewctl.delivery.inbox import consumption
from brewctl.delivery.inbox.batch import Batch
from brewctl.delivery.inbox.consumption import Consumption
from brewctl.delivery.inbox.inbox import Inbox
from brewctl.roles import inventory
from tests.conftest import Rig, limited
from tests.integration.kafka_tools import committed_offsets, good_record, kafka_admin

PARTITION = 3
BATCH = 7
RECORDS = 40


class Reader(Consumer):
    """Says what it reads and commits, and how many effects there were at each commit."""

    read: list[list[int]]
    committed: list[tuple[int, int]]
    rig: Rig

    def poll(self, *, timeout_s: float) -> list[Record]:
        records = super().poll(timeout_s=timeout_s)
        if records:
            self.read.append([record.offset for record in records])
        return records

    def commit(self, records: Sequence[Record]) -> str:
        self.committed.append((records[-1].offset + 1, self.rig.counts().reservations))
        return super().commit(records)


class Member:
    """One of the group `inventory`, in a thread."""

    def __init__(self, settings: Settings, inbox: Inbox) -> None:
        self.stop = threading.Event()
        self.written: list[list[int]] = []
        self.tally = inbox.tally
        apply = inbox.apply

        def apply_and_say(batch: Batch) -> None:
            self.written.append([record.offset for record, _ in batch.readable.values()])
            apply(batch)

        inbox.apply = apply_and_say  # type: ignore[method-assign]
        self._consumption = Consumption(settings, inbox, group="inventory", node="inventory-1")
        self._thread = threading.Thread(target=self._consumption.run, args=(self.stop,))

    @property
    def waits_for_the_database(self) -> bool:
        """Whether the thread that polls stands still until the batch is written."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        while frame:
            if frame.f_code is Consumption._await_batch.__code__:
                return True
            frame = frame.f_back
        return False

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self.stop.set()
        if self._thread.ident:
            self._thread.join()


@pytest.fixture
def settings(rig: Rig) -> Settings:
    """Offsets are committed after each batch, so that a test sees the order of effects and offsets."""
    return limited(rig.settings, consume_records=BATCH, redelivery_records=BATCH)


@pytest.fixture
def reader(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> type[Reader]:
    class Mine(Reader):
        read: list[list[int]] = []  # noqa: RUF012 - one test's own
        committed: list[tuple[int, int]] = []  # noqa: RUF012

    Mine.rig = rig
    monkeypatch.setattr(consumption, "Consumer", Mine)
    producer = KafkaProducer(**connection(rig.settings, name="test"), linger_ms=1000, batch_size=2**20)
    for good in (good_record() for _ in range(RECORDS)):
        producer.send(rig.settings.topic, good.value, good.key, headers=good.headers, partition=PARTITION)
    producer.close()
    return Mine


@contextlib.contextmanager
def a_member(settings: Settings) -> Iterator[Member]:
    """Enter it before the gate: that must open first."""
    with database.open_pool(settings, name="inventory-1", size=1) as pool:
        member = Member(settings, Inbox(settings, pool, inventory.DOWNSTREAM, node="inventory-1"))
        try:
            yield member
        finally:
            member.end()


def committed(rig: Rig) -> dict[int, int]:
    with kafka_admin(rig.settings) as admin:
        return committed_offsets(admin, "inventory", rig.settings.topic)


def batches(first: int, last: int) -> list[list[int]]:
    return [list(range(begin, min(begin + BATCH, last))) for begin in range(first, last, BATCH)]


def test_one_batch_is_in_the_database_and_one_in_hand(rig: Rig, settings: Settings, reader: type[Reader]) -> None:
    with a_member(settings) as member:
        with rig.no_reservations():
            member.begin()
            wait_for_two_batches(rig, reader, member)
            assert reader.read == batches(0, 2 * BATCH), "and no third"
            assert member.written == batches(0, BATCH)
            assert reader.committed == []
            assert committed(rig) == {}
        rig.wait("all reserved", lambda: rig.counts().reservations == RECORDS)
        rig.wait("all committed", lambda: committed(rig) == {PARTITION: RECORDS})
    assert reader.read == member.written == batches(0, RECORDS)
    assert [offset for offset, _ in reader.committed] == [batch[-1] + 1 for batch in member.written]
    assert all(offset <= effects for offset, effects in reader.committed), "effects first, then offsets"
    assert (member.tally.effects, member.tally.skipped) == (RECORDS, 0)


def test_a_stop_with_two_batches_finishes_the_first_and_leaves_the_second(
    rig: Rig, settings: Settings, reader: type[Reader]
) -> None:
    with a_member(settings) as member, rig.no_reservations():
        member.begin()
        wait_for_two_batches(rig, reader, member)
        member.stop.set()
    assert member.written == batches(0, BATCH)
    assert rig.counts().reservations == BATCH
    assert committed(rig) == {PARTITION: BATCH}
    with a_member(settings) as other:
        other.begin()
        rig.wait("all reserved", lambda: rig.counts().reservations == RECORDS)
    assert other.written == batches(BATCH, RECORDS)
    assert [each.tally.effects for each in (member, other)] == [BATCH, RECORDS - BATCH]
    assert member.tally.skipped == other.tally.skipped == 0


def wait_for_two_batches(rig: Rig, reader: type[Reader], member: Member) -> None:
    rig.wait("a second batch", lambda: len(reader.read) > 1)
    rig.wait("a member that waits", lambda: member.waits_for_the_database)
