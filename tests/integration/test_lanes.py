"""Lanes: a handler called for many keys at once, in order for each of them, and never twice without its event id."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from brewctl import tracing
from brewctl.delivery.downstream import Later
from brewctl.delivery.events import Event
from brewctl.delivery.inbox.waiting_events import WaitingEvents
from brewctl.delivery.schema.homes import Home
from brewctl.errors import BrewError
from brewctl.exporter import postgres
from brewctl.tracing.spans import Tracing
from tests.conftest import Rig
from tests.integration.grpc_tools import PARENT, TRACE
from tests.integration.lanes_tools import Gate, Receiver, at_once, ids, record, until


def test_two_processes_handle_the_events_of_each_key_in_order_and_keys_side_by_side(laned: Rig) -> None:
    orders = ids(20)
    receiver = Receiver(laned, lanes=16)
    records = [record(order, seq=seq) for seq in range(1, 6) for order in orders]
    with receiver.running("n-1") as one, receiver.running("n-2") as two:
        inbox = receiver.take(*records)
        receiver.take(*records)  # delivered again
        until("all are handled", lambda: not receiver.rows())
        until("all are counted", lambda: one.work.effects + two.work.effects == 100)
    assert (inbox.tally.waiting, inbox.tally.effects, inbox.tally.processed) == (100, 0, 100)
    for order in orders:
        assert receiver.seqs(order) == receiver.handled(order) == [1, 2, 3, 4, 5]
    assert at_once(receiver, orders) == [1] * 20
    assert receiver.processed() == 100


def test_a_slow_key_holds_up_neither_other_keys_nor_the_consumer(laned: Rig) -> None:
    slow, *others = ids(11)
    receiver = Receiver(laned, lanes=2)
    gate = receiver.answers[slow] = Gate()
    with receiver.running():
        receiver.take(record(slow), record(slow, seq=2), *(record(order) for order in others))
        assert gate.reached.wait(30)
        receiver.take(*(record(order, seq=2) for order in others))
        until("the others are handled", lambda: len(receiver.handled()) == 20)
        assert receiver.seqs(slow) == [1]
        gate.open()
        until("all are handled", lambda: not receiver.rows())
    assert receiver.handled(slow) == [1, 2]


def test_no_more_keys_are_handled_at_once_than_there_are_lanes_and_all_lanes_are_used(laned: Rig) -> None:
    receiver = Receiver(laned, lanes=3)
    gate = receiver.every = Gate()
    with receiver.running():
        receiver.take(*(record(order) for order in ids(7)))
        until("three are called", lambda: receiver.most_at_once["all"] == 3)
        gate.open()
        until("all are handled", lambda: not receiver.rows())
    assert receiver.most_at_once["all"] == 3


def test_no_transaction_is_open_while_a_handler_calls_and_tx_and_the_row_are_one_commit(laned: Rig) -> None:
    (order,) = ids(1)
    receiver = Receiver(laned, lanes=1)
    gate = receiver.answers[order] = Gate()
    open_ones = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend' AND xact_start IS NOT NULL"
    )
    with receiver.running():
        receiver.take(record(order))
        assert gate.reached.wait(30)
        until("no transaction is open", lambda: laned.connection.execute(open_ones).fetchone() == (0,))
        gate.open()
        until("it is handled", lambda: not receiver.rows())
    assert receiver.handled(order) == [1]
    same = (
        "SELECT count(DISTINCT xmin::text) FROM (SELECT xmin FROM handled WHERE order_id = %s"
        " UNION ALL SELECT xmin FROM processed_events WHERE consumer = %s) AS rows"
    )
    assert laned.connection.execute(same, [order, receiver.group]).fetchone() == (1,)


def test_a_lease_is_renewed_while_its_handler_runs(laned: Rig) -> None:
    (order,) = ids(1)
    receiver = Receiver(laned, session_s=1.5, heartbeat_s=0.5)
    gate = receiver.answers[order] = Gate()
    ends = "SELECT extract(epoch FROM lease_until)::float8 FROM waiting_events WHERE consumer = %s"

    def end() -> float:
        (found,) = laned.connection.execute(ends, [receiver.group]).fetchone() or (0.0,)
        return float(found)

    with receiver.running("n-1") as one, receiver.running("n-2") as two:
        receiver.take(record(order))
        assert gate.reached.wait(30)
        first = end()
        until("it outlives its first lease", lambda: end() > first + 1.5)
        gate.open()
        until("it is handled", lambda: not receiver.rows())
    assert (receiver.seqs(order), receiver.handled(order)) == ([1], [1])
    assert one.lanes.lost + two.lanes.lost == 0


@pytest.mark.parametrize("writes", [True, False], ids=["tx", "no tx"])
def test_what_a_process_does_whose_lease_is_lost_is_not_kept(
    laned: Rig, monkeypatch: pytest.MonkeyPatch, *, writes: bool
) -> None:
    """As one that stood still for longer than its lease."""
    (order,) = ids(1)
    receiver = Receiver(laned, writes=writes, session_s=1.5, heartbeat_s=0.5)
    first, second = Gate(), Gate()
    gates: Iterator[Callable[[Event[Any]], None]] = iter([first, second])

    def answer(event: Event[Any]) -> None:
        next(gates)(event)

    receiver.answers[order] = answer
    monkeypatch.setattr(WaitingEvents, "renew", lambda *_: set())
    with receiver.running("n-1") as one:
        receiver.take(record(order), record(order, seq=2))
        assert first.reached.wait(30)
        with receiver.running("n-2") as two:
            assert second.reached.wait(30)
            first.open()
            until("it is known to be lost", lambda: one.lanes.lost)
            assert receiver.handled(order) == []
            gates = iter([lambda _event: None])
            second.open()
            until("it is handled", lambda: not receiver.rows())
            until("they are counted", lambda: one.work.effects + two.work.effects == 2)
    assert receiver.seqs(order) == [1, 1, 2]
    assert len({event_id for _, seq, event_id in receiver.calls if seq == 1}) == 1
    assert receiver.handled(order) == ([1, 2] if writes else [])


def test_a_stop_waits_for_the_calls_in_hand_and_begins_no_other(laned: Rig) -> None:
    orders = ids(3)
    receiver = Receiver(laned, lanes=2)
    gate = receiver.every = Gate()
    with receiver.running() as process:
        receiver.take(*(record(order) for order in orders))
        until("two are called", lambda: receiver.most_at_once["all"] == 2)
        process.stop.set()
        threading.Timer(0.2, gate.open).start()
    assert len(receiver.calls) == 2
    (left,) = receiver.rows()
    assert left[0].endswith(orders[2])
    leases = "SELECT count(lease) FROM waiting_events WHERE consumer = %s"
    assert laned.connection.execute(leases, [receiver.group]).fetchone() == (0,)


def test_a_call_that_does_not_end_in_time_gives_its_lease_back_and_is_made_again_elsewhere(laned: Rig) -> None:
    (order,) = ids(1)
    receiver = Receiver(laned)
    gate = receiver.answers[order] = Gate()
    receiver.take(record(order))

    def be_stopped_in_a_call() -> None:
        with receiver.running("n-1", drain_s=0.5, kafka_leave_s=0.0, database_look_s=0.1):
            assert gate.reached.wait(30)

    with pytest.raises(BrewError, match="1 call in hand did not finish in time") as said:
        be_stopped_in_a_call()
    assert "the same event.id" in said.value.hint
    receiver.answers.clear()
    with receiver.running("n-2"):
        until("it is handled", lambda: receiver.handled(order) == [1])
    gate.open()
    until("the first has returned", lambda: receiver.in_hand(order) == 0)
    assert receiver.handled(order) == [1]
    assert len({event_id for _, _, event_id in receiver.calls}) == 1


def test_more_than_a_bound_is_not_taken_until_some_are_handled(laned: Rig) -> None:
    orders = ids(30)
    receiver = Receiver(laned, waiting_events=10)
    receiver.take(*(record(order) for order in orders[:10]))
    rest = [record(order) for order in orders[10:20]]
    with pytest.raises(Later):
        receiver.take(*rest)
    assert len(receiver.rows()) == 10
    with receiver.running():
        until("there is room", lambda: not receiver.rows())
        inbox = receiver.take(*rest)
        until("all are handled", lambda: not receiver.rows())
    assert len(receiver.handled()) == 20
    assert not inbox.work().trouble
    # A batch that is larger than the bound is taken where nothing waits.
    receiver.take(*(record(order, seq=2) for order in orders))
    assert len(receiver.rows()) == 30


def test_what_a_handler_does_wrong_with_tx_counts_against_its_event_and_keeps_nothing(laned: Rig) -> None:
    (order,) = ids(1)
    receiver = Receiver(laned, attempts=1)

    def spoil(_event: Any, tx: Any) -> None:
        tx.execute("INSERT INTO handled (consumer, order_id, seq) VALUES (%s, %s, 1)", [receiver.group, order])
        tx.commit()

    object.__setattr__(receiver.downstream, "handler", spoil)
    with receiver.running():
        receiver.take(record(order))
        until("it is parked", receiver.parked)
    assert receiver.handled() == []
    assert "the handler used tx.commit" in receiver.parked()[0][1]


def test_tx_is_a_connection_also_before_it_is_used_and_none_after_the_handler_has_returned(laned: Rig) -> None:
    used, unused = ids(2)
    receiver = Receiver(laned, lanes=1)
    kept: list[Any] = []

    def keep(event: Any, tx: Any) -> None:
        kept.append(tx)
        assert isinstance(tx, psycopg.Connection)
        assert "not used" in repr(tx)
        if event.data.order_id == used:
            with tx.transaction(), tx.cursor() as cursor:
                assert cursor.execute("SELECT 1").fetchone() == (1,)

    object.__setattr__(receiver.downstream, "handler", keep)
    with receiver.running():
        receiver.take(record(used), record(unused))
        until("both are handled", lambda: not receiver.rows())
    for tx in kept:
        with pytest.raises(Exception, match="after the handler had returned"):
            tx.execute("SELECT 1")


@pytest.mark.parametrize("known", [True, False], ids=["lanes", "no lanes here"])
def test_the_exporter_tells_how_many_wait_and_for_how_long_of_groups_whose_events_wait_for_lanes(
    laned: Rig, *, known: bool
) -> None:
    receiver, idle, empty = Receiver(laned), Receiver(laned, lanes=0), Receiver(laned)
    receiver.take(*(record(order) for order in ids(3)))
    # As with a channel that the exporter's own variables do not name.
    here = receiver.downstream if known else replace(receiver.downstream, lanes=0)
    home = Home(laned.settings, (here, idle.downstream, empty.downstream), ("a:a", "b:b", "c:c"), apart=False)
    with postgres.opened(home, home.groups) as questions:
        found = [sample for each in questions for sample in each.look()]
    waiting = {sample.labels: sample.value for sample in found if sample.family.name == "brew_waiting_events"}
    assert waiting == {(receiver.group,): 3, (empty.group,): 0}
    oldest = {sample.labels: sample.value for sample in found if sample.family.name == "brew_waiting_oldest_seconds"}
    assert (oldest[receiver.group,] > 0, oldest[empty.group,]) == (True, 0)


@pytest.mark.parametrize("by_parent", [False, True])
def test_each_call_has_a_span_that_leads_to_the_one_that_created_its_event(
    laned: Rig, monkeypatch: pytest.MonkeyPatch, *, by_parent: bool
) -> None:
    memory, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    (order,) = ids(1)
    receiver = Receiver(laned)
    inner = provider.get_tracer("test")
    tries = iter([ValueError("no")])

    def call(_event: Event[Any]) -> None:
        with inner.start_as_current_span("POST"):
            if error := next(tries, None):
                raise error

    receiver.answers[order] = call
    monkeypatch.setattr(tracing, "_in_force", Tracing(provider, node="n-1", by_parent=by_parent))
    with receiver.running():
        receiver.take(record(order, traceparent=f"00-{TRACE}-{PARENT}-01"))
        until("it is handled", lambda: not receiver.rows())
    spans = memory.get_finished_spans()
    calls = [span for span in spans if span.name == "process topic"]
    assert [span.status.is_ok for span in calls] == [False, True]
    assert [span.parent and span.parent.span_id for span in spans if span.name == "POST"] == [
        span.context.span_id for span in calls
    ]
    for span in calls:
        led = span.parent if by_parent else span.links[0].context
        assert led is not None
        assert (f"{led.trace_id:032x}", f"{led.span_id:016x}") == (TRACE, PARENT)
