"""Events whose handler fails in a lane: tried again, parked with what waits behind them, redriven; or all stop."""

import itertools
import re
import sys
import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from brewctl.delivery import database, events
from brewctl.delivery.downstream import Later, Reject
from brewctl.delivery.events import Event
from brewctl.delivery.inbox import parking
from brewctl.delivery.inbox.waiting_events import WaitingEvents
from tests.conftest import Rig
from tests.integration.lanes_tools import Gate, Receiver, ids, record, until


def failing(error: Callable[[], Exception], *, times: int | None = None) -> Callable[[Event[Any]], None]:
    """An answer that is this error, so often; or always."""
    numbers = itertools.count()

    def answer(_event: Event[Any]) -> None:
        if times is None or next(numbers) < times:
            raise error()

    return answer


def test_an_event_that_fails_is_tried_again_and_then_parked_with_what_waits_of_its_key(laned: Rig) -> None:
    bad, good = ids(2)
    receiver = Receiver(laned, attempts=3)
    receiver.answers[bad] = failing(lambda: ValueError("no such\ncustomer \0"))
    with receiver.running() as process:
        receiver.take(record(bad), record(good), record(bad, seq=2), record(good, seq=2))
        until("they are parked", lambda: len(receiver.parked()) == 2)
        receiver.take(record(bad, seq=3), record(good, seq=3))
        until("nothing waits", lambda: not receiver.rows())
        until("all is counted", lambda: process.work.effects == 3)
    assert (receiver.seqs(bad), receiver.handled(bad)) == ([1, 1, 1], [])
    assert receiver.handled(good) == [1, 2, 3]
    behind = "waits behind an event of its key"
    assert receiver.parked() == [(1, "ValueError: no such customer ?", 3), (2, behind, 0), (3, behind, 0)]
    assert process.work.dead == 2  # the third by the consumer
    assert receiver.processed() == 3
    assert not process.work.trouble


def test_what_is_parked_is_redriven_in_order_and_later_events_go_to_the_lanes_again(laned: Rig) -> None:
    (bad,) = ids(1)
    receiver = Receiver(laned, attempts=1)
    receiver.answers[bad] = failing(lambda: ValueError("down"))
    records = [record(bad), record(bad, seq=2)]
    with receiver.running():
        receiver.take(*records)
        until("they are parked", lambda: len(receiver.parked()) == 2)
        inbox = receiver.take(*records)  # delivered again: neither waits, and neither is parked twice
        assert (inbox.tally.waiting, inbox.tally.parked, inbox.tally.duplicates) == (0, 0, 2)
        key = events.aggregate_id(bad)
        with database.connect(laned.settings) as connection:
            still = parking.redrive(connection, receiver.downstream, [key], node="n")
            assert [why for _, why in still.refused] == ["ValueError: down"]
            receiver.answers.clear()
            done = parking.redrive(connection, receiver.downstream, [key], node="n")
        assert [each.seq for each in done.done] == [1, 2]
        receiver.take(*records, record(bad, seq=3))
        until("the third is handled", lambda: receiver.handled(bad) == [1, 2, 3])
    assert (receiver.parked(), receiver.processed()) == ([], 3)


def test_a_rejected_event_is_parked_at_once_and_a_dropped_one_counts_as_processed(laned: Rig) -> None:
    (bad,) = ids(1)
    receiver = Receiver(laned, attempts=5)
    receiver.answers[bad] = failing(lambda: Reject("unknown customer"), times=1)
    with receiver.running():
        receiver.take(record(bad), record(bad, seq=2))
        until("they are parked", lambda: len(receiver.parked()) == 2)
        assert receiver.parked()[0] == (1, "unknown customer", 1)
        with database.connect(laned.settings) as connection:
            found = parking.find(connection, [receiver.group])
            parking.drop(connection, found[:1])
            parking.redrive(connection, receiver.downstream, [found[1].key], node="n")
        assert (receiver.seqs(bad), receiver.handled(bad)) == ([1, 2], [2])
    assert receiver.processed() == 2


def test_later_is_no_failure_and_holds_up_its_key_alone(laned: Rig) -> None:
    busy, other = ids(2)
    receiver = Receiver(laned, attempts=1)
    receiver.answers[busy] = failing(lambda: Later(seconds=0.1), times=4)
    with receiver.running():
        receiver.take(record(busy), record(busy, seq=2), record(other))
        until("all are handled", lambda: not receiver.rows())
    assert receiver.seqs(busy) == [1, 1, 1, 1, 1, 2]
    assert (receiver.handled(busy), receiver.handled(other), receiver.parked()) == ([1, 2], [1], [])


def test_a_later_that_is_far_away_gives_the_lane_back(laned: Rig) -> None:
    busy, other = ids(2)
    receiver = Receiver(laned, lanes=1)
    receiver.answers[busy] = failing(lambda: Later(seconds=3600))
    with receiver.running():
        receiver.take(record(busy), record(other), record(busy, seq=2))
        until("the other is handled", lambda: receiver.handled(other) == [1])
        until("it is put back", lambda: laned.connection.execute(*due(receiver)).fetchone() == (2, 1))
    assert receiver.rows() == [(events.aggregate_id(busy), 0)] * 2


def due(receiver: Receiver) -> tuple[str, list[str]]:
    """How many rows wait, and how many of them not before some minutes have passed; none is leased."""
    later = "next_try_at > now() + interval '50 minutes' AND lease IS NULL"
    return f"SELECT count(*), count(*) FILTER (WHERE {later}) FROM waiting_events WHERE consumer = %s", [receiver.group]


def test_a_receiver_that_is_away_for_all_stops_the_lanes_parks_nothing_and_they_resume(laned: Rig) -> None:
    orders = ids(40)
    receiver = Receiver(laned, lanes=4, attempts=3)
    receiver.every = failing(lambda: ConnectionError("refused"))
    with receiver.running() as process:
        receiver.take(*(record(order) for order in orders))
        until("they have stopped", lambda: process.work.trouble.startswith("stopped: "))
        assert [finding.ready for finding in process.lanes.findings()] == [False]
        calls = len(receiver.calls)
        until("some are tried", lambda: len(receiver.calls) >= calls + 4 + 2)  # some were in hand
        assert re.search(r"\d\d events in a row failed: ConnectionError: refused", process.work.trouble)
        assert len({order for order, _, _ in receiver.calls[-3:]}) == 3  # not one of them again and again
        gate = receiver.every = Gate()
        assert gate.reached.wait(30)
        leased = "SELECT count(*) FROM waiting_events WHERE consumer = %s AND lease_until > now()"
        assert laned.connection.execute(leased, [receiver.group]).fetchone() == (1,)
        assert (receiver.parked(), len(receiver.rows())) == ([], 40)
        assert max(attempts for _, attempts in receiver.rows()) < 3
        gate.open()
        until("all are handled", lambda: not receiver.rows())
        until("it has resumed", lambda: not process.work.trouble)
    assert (len(receiver.handled()), receiver.parked()) == (40, [])


def test_a_new_event_of_another_key_ends_the_stop_that_many_bad_keys_caused(laned: Rig) -> None:
    orders, (good,) = ids(15), ids(1)
    receiver = Receiver(laned, lanes=4, attempts=2)
    receiver.every = failing(lambda: ConnectionError("refused"))
    receiver.answers[good] = lambda _event: None
    with receiver.running() as process:
        receiver.take(*(record(order) for order in orders))
        until("they have stopped", lambda: process.work.trouble.startswith("stopped: "))
        receiver.take(record(good))
        until("it is handled", lambda: receiver.handled(good) == [1])


def test_receivers_that_time_out_leave_half_of_the_lanes_to_others(laned: Rig) -> None:
    dead, good = ids(8), ids(4)
    receiver = Receiver(laned, lanes=4, attempts=9)
    gate = Gate()
    hanging = iter(())

    def hang(event: Event[Any]) -> None:
        if receiver.seqs(event.data.order_id) == [1]:
            raise TimeoutError("no answer")
        next(hanging, None)
        gate(event)

    for order in dead:
        receiver.answers[order] = hang
    with receiver.running():
        receiver.take(*(record(order) for order in dead))
        until("all have failed once, and two are tried again", lambda: len(receiver.calls) >= len(dead) + 2)
        receiver.take(*(record(order) for order in good))
        until("the others are handled", lambda: len(receiver.handled()) == 4)
        assert len(receiver.calls) == len(dead) + 2 + len(good)
        gate.open()
        until("all are handled", lambda: not receiver.rows())


def test_while_postgres_is_away_nothing_counts_and_a_call_that_was_made_is_not_made_again(
    laned: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    (order,) = ids(1)
    receiver = Receiver(laned, attempts=1, writes=False)
    away = iter(range(3))
    finish = WaitingEvents.finish

    def refuse(self: WaitingEvents, *words: Any) -> None:
        if next(away, None) is not None:
            raise psycopg.OperationalError("connection refused")
        finish(self, *words)

    monkeypatch.setattr(WaitingEvents, "finish", refuse)
    with receiver.running():
        receiver.take(record(order))
        until("it is handled", lambda: not receiver.rows())
    assert (receiver.seqs(order), receiver.parked()) == ([1], [])


def test_a_handler_whose_transaction_can_not_be_committed_is_called_again_and_nothing_counts(
    laned: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    (order,) = ids(1)
    receiver = Receiver(laned, attempts=1)
    away = iter(range(2))
    finish = WaitingEvents.finish

    def refuse(self: WaitingEvents, connection: Any, waiting: Any) -> None:
        if next(away, None) is not None:
            connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        finish(self, connection, waiting)

    monkeypatch.setattr(WaitingEvents, "finish", refuse)
    with receiver.running():
        receiver.take(record(order))
        until("it is handled", lambda: not receiver.rows())
    assert (receiver.seqs(order), receiver.handled(order), receiver.parked()) == ([1, 1, 1], [1], [])


def test_an_event_that_was_taken_as_an_earlier_one_of_its_key_was_parked_is_parked_behind_it(laned: Rig) -> None:
    (bad,) = ids(1)
    receiver = Receiver(laned, attempts=1)
    receiver.answers[bad] = failing(lambda: ValueError("no"))
    with receiver.running():
        receiver.take(record(bad))
        until("it is parked", receiver.parked)
    # As the consumer's statement, which began before that was committed, leaves it.
    laned.connection.execute("UPDATE parked_events SET outcome = 'dropped' WHERE consumer = %s", [receiver.group])
    receiver.take(record(bad, seq=2))
    laned.connection.execute("UPDATE parked_events SET outcome = NULL WHERE consumer = %s", [receiver.group])
    with receiver.running():
        until("it is parked", lambda: len(receiver.parked()) == 2)
    assert (receiver.seqs(bad), receiver.rows(), receiver.processed()) == ([1], [], 0)


def test_an_event_that_is_parked_leaves_the_dedup_row_of_an_earlier_one_with_its_outbox_id(laned: Rig) -> None:
    """As after a restore, when an outbox id was used again."""
    before, after = ids(2)
    receiver = Receiver(laned, attempts=1)
    receiver.answers[after] = failing(lambda: ValueError("no"))
    number, first, second = 900_000, str(uuid.uuid4()), str(uuid.uuid4())
    with receiver.running():
        receiver.take(record(before, outbox_id=number, event_id=first))
        until("it is handled", lambda: receiver.handled(before) == [1])
        receiver.take(record(after, outbox_id=number, event_id=second))
        until("it is parked", receiver.parked)
        row = "SELECT event_id::text, cardinality(earlier_ids) FROM processed_events WHERE consumer = %s"
        assert laned.connection.execute(row, [receiver.group]).fetchall() == [(first, 0)]
        receiver.answers.clear()
        with database.connect(laned.settings) as connection:
            parking.redrive(connection, receiver.downstream, [events.aggregate_id(after)], node="n")
    assert (receiver.handled(after), receiver.calls.count((before, 1, first))) == ([1], 1)


def test_a_handler_that_exits_costs_its_event_alone(laned: Rig) -> None:
    bad, good = ids(2)
    receiver = Receiver(laned, lanes=1, attempts=1)

    def leave(_event: Event[Any]) -> None:
        sys.exit(3)

    receiver.answers[bad] = leave
    with receiver.running():
        receiver.take(record(bad), record(good))
        until("the other is handled", lambda: receiver.handled(good) == [1])
    assert receiver.parked() == [(1, "HandlerError: the handler raised SystemExit(3)", 1)]


def test_a_handler_that_adds_to_an_outbox_without_a_partition_for_it_is_called_again_and_nothing_counts(
    laned: Rig,
) -> None:
    (order,) = ids(1)
    receiver = Receiver(laned, attempts=1, writes=False)

    def add(_event: Event[Any], tx: Any) -> None:
        tx.execute("SELECT outbox_add('elsewhere', %s, 'told', 'x')", [order])

    object.__setattr__(receiver.downstream, "handler", add)
    laned.connection.execute("SELECT setval('outbox_id_seq', 50000000)")
    with receiver.running():
        receiver.take(record(order))
        until("it is handled", lambda: not receiver.rows())
    added = laned.connection.execute("SELECT count(*) FROM outbox WHERE aggregate_id = %s", [order]).fetchone()
    assert (added, receiver.parked()) == ((1,), [])
