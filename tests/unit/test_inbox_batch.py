"""The records of one poll: which are repeats, whose offsets may be committed, when one is parked or buried."""

import uuid
from collections.abc import Sequence

import psycopg
import pytest

from brewctl.config import Settings
from brewctl.delivery import events
from brewctl.delivery.broker import ClockError, Outcome, Place, Record, RefusedError, UnavailableError
from brewctl.delivery.downstream import Downstream, Reject
from brewctl.delivery.inbox import burial, dead_letter
from brewctl.delivery.inbox.batch import Batch
from brewctl.delivery.inbox.failures import Failures, StoppedError
from brewctl.errors import BrewError
from brewctl.proto.orders_pb2 import OrderCreated

DECODERS = {b"order.created": events.parse_order}
FIRST, SECOND = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))


def record(
    offset: int, outbox_id: int, *, event_id: str | None = None, partition: int = 0, bad: bool = False
) -> Record:
    order = OrderCreated(order_id=str(uuid.UUID(int=outbox_id)))
    key = events.aggregate_id(order.order_id)
    headers = events.headers_for(outbox_id, key, "order.created", node="n", event_id=event_id and uuid.UUID(event_id))
    return Record("t", key.encode(), b"rubbish" if bad else order.SerializeToString(), headers, partition, offset, 0)


def offsets(records: Sequence[Record]) -> list[tuple[int, int]]:
    return [(each.partition, each.offset) for each in records]


def test_of_each_partition_what_is_before_the_first_undone_event_may_be_committed() -> None:
    batch = Batch.of(
        [record(5, 1), record(6, 2, bad=True), record(7, 3), record(5, 4, partition=1), record(6, 5, partition=1)],
        DECODERS,
    )
    batch.settle()
    assert offsets(batch.settled) == []
    del batch.readable[1, None], batch.readable[4, None]
    batch.settle()
    assert offsets(batch.settled) == [(0, 5), (1, 5)]
    batch.readable.clear()
    batch.settle()  # the dead letter was not acknowledged: it is all that is left
    assert offsets(batch.settled) == [(0, 5), (1, 5), (1, 6)]
    batch.dead.clear()
    batch.settle()
    assert offsets(batch.settled) == offsets(batch.records)


@pytest.mark.parametrize(
    ("ids", "kept", "repeats"),
    [
        ([FIRST, FIRST], [FIRST], 1),
        ([None, FIRST], [None], 1),  # the record of an older publisher, and that of a newer one
        ([FIRST, SECOND], [FIRST, SECOND], 0),  # of two events, as after a restored database
        ([FIRST, SECOND, SECOND, FIRST], [FIRST, SECOND], 2),
    ],
)
def test_an_event_that_comes_again_within_a_batch_is_a_duplicate(
    ids: list[str | None], kept: list[str | None], repeats: int
) -> None:
    batch = Batch.of([record(offset, 7, event_id=event_id) for offset, event_id in enumerate(ids)], DECODERS)
    assert list(batch.readable) == [(7, event_id) for event_id in kept]
    assert batch.repeats[7] == repeats
    assert batch.reused == (len(kept) > 1)


# Failures


def failures(*, attempts: int = 3, most_in_a_row: int = 4) -> Failures:
    downstream = Downstream("loyalty", handler=lambda _event, _tx: None, events=("order.created",), attempts=attempts)
    return Failures(downstream, most_in_a_row=most_in_a_row)


def test_an_event_is_parked_at_its_last_attempt_and_a_rejected_one_at_once() -> None:
    counted = failures()
    assert [counted.failed((1, None), ValueError()) for _ in range(3)] == [None, None, 3]
    assert counted.failed((2, None), Reject("no")) == 1


def test_events_that_are_done_begin_anew() -> None:
    counted = failures(attempts=2)
    assert counted.failed((1, None), ValueError()) is None
    counted.settled([(1, None)])
    assert counted.failed((1, None), ValueError()) is None


def test_many_in_a_row_stop_it_and_a_success_between_them_does_not() -> None:
    counted = failures(most_in_a_row=3)
    for number in range(2):
        counted.failed((number, None), ValueError())
    counted.succeeded()
    for number in range(2, 4):
        counted.failed((number, None), ValueError())
    with pytest.raises(StoppedError, match="3 events in a row failed"):
        counted.failed((4, None), ValueError())
    assert counted.trouble
    counted.succeeded()
    assert not counted.trouble


def test_a_table_that_is_not_there_stops_it_at_the_first_event() -> None:
    with pytest.raises(StoppedError):
        failures().failed((1, None), psycopg.errors.UndefinedTable("no table"))


# Burial


class Kafka:
    """Stands for the producer: it acknowledges what it is told to."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)
        self.sent: list[Record] = []
        self.abandoned = False

    def send(self, records: list[Record], *, timeout_s: float) -> list[Outcome]:
        assert timeout_s > 0
        self.sent += records
        return [self.outcomes.pop(0) for _ in records]

    def abandon(self) -> None:
        self.abandoned = True


def bury(monkeypatch: pytest.MonkeyPatch, kafka: Kafka, count: int = 3) -> tuple[list[int], type[Exception] | None]:
    """Bury so many records; return the offsets of those that stay, and what was raised."""
    monkeypatch.setattr(dead_letter, "open_producer", lambda *_, **__: kafka)
    dead = [(record(number, number + 1, bad=True), "rubbish") for number in range(count)]
    try:
        burial.Burial(Settings(), "inventory", node="n").bury(dead)
    except (UnavailableError, BrewError) as error:
        return [each.offset for each, _ in dead], type(error)
    return [each.offset for each, _ in dead], None


def test_a_dead_letter_stays_until_it_is_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    kafka = Kafka(Place(0, 1), UnavailableError("away"), Place(0, 2))
    assert bury(monkeypatch, kafka) == ([1], UnavailableError)
    assert kafka.abandoned, "nothing of it may arrive after a later try"


def test_a_dead_letter_that_is_too_large_goes_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    kafka = Kafka(RefusedError("too large"), Place(0, 1))
    assert bury(monkeypatch, kafka, 1) == ([], None)
    assert [bool(each.value) for each in kafka.sent] == [True, False]
    assert bury(monkeypatch, Kafka(RefusedError("no"), RefusedError("no")), 1) == ([0], BrewError)


def test_a_dead_letter_whose_clock_is_refused_has_the_time_of_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    kafka = Kafka(ClockError("too new"), Place(0, 1))
    assert bury(monkeypatch, kafka, 1) == ([], None)
    assert kafka.sent[-1].timestamp_ms == 0
