"""The load, against order-services of the tests' own: who sends when, what is recorded, and what ends it."""

import threading
import time
from collections import Counter
from typing import Any

import grpc
import pytest

from brewctl.lab.load.load import CallOutcome, History, Load, LoadCall
from brewctl.lifecycle import wait_until
from tests.order_server import serving
from tests.unit.load_runs import number, run

Code = grpc.StatusCode
MANY = 20_000  # more than are sent before a load is told to stop
STALL_S = 0.5


def stalls_first(at: int, _context: Any) -> None:
    """Answers the first call late."""
    if at == 0:
        time.sleep(STALL_S)


# Pacing


def test_callers_of_a_closed_loop_wait_for_their_answers() -> None:
    together = threading.Barrier(3)
    with serving(lambda at, _: together.wait(20) if at < 3 else None) as server:
        told = History()
        run(Load([server.address], told.record, concurrency=3, orders=30))
    assert server.in_flight_at_most == 3
    assert told.count(CallOutcome.ACKNOWLEDGED) == len(server.requests) == 30
    assert all(call.intended_s == call.begun_s for call in told.calls)


def test_a_call_of_an_open_loop_is_intended_at_its_number_by_the_rate() -> None:
    with serving(stalls_first) as server:
        told = History()
        run(Load([server.address], told.record, rate=200, concurrency=2, orders=20))
    assert sorted(call.intended_s for call in told.calls) == pytest.approx([at / 200 for at in range(20)])
    assert all(call.begun_s >= call.intended_s for call in told.calls)


def test_an_open_loop_does_not_wait_for_answers() -> None:
    together = threading.Barrier(4)
    with serving(lambda _at, _context: together.wait(20)) as server:
        told = History()
        run(Load([server.address], told.record, rate=500, concurrency=4, orders=8))
    assert told.count(CallOutcome.ACKNOWLEDGED) == 8
    assert server.in_flight_at_most == 4


def test_what_waits_behind_a_stall_has_its_latency() -> None:
    """Coordinated omission: a client that measures from when it sends would see one slow call of six."""
    with serving(stalls_first) as server:
        told = History()
        run(Load([server.address], told.record, rate=100, concurrency=1, orders=6))
    for call in told.calls:
        assert call.latency_s >= STALL_S - number(call) / 100
    assert told.slowest_s == max(call.latency_s for call in told.calls)


def test_what_is_still_queued_at_the_end_is_counted() -> None:
    stop = threading.Event()

    def stalls_until_the_end(_at: int, _context: Any) -> None:
        time.sleep(STALL_S)
        stop.set()

    with serving(stalls_until_the_end) as server:
        load = Load([server.address], History().record, rate=1000, concurrency=1, duration_s=10)
        run(load, stop)
    assert load.unsent >= STALL_S * 1000 - len(server.requests)


def test_a_load_that_sent_all_its_orders_owes_none() -> None:
    with serving(stalls_first) as server:
        load = Load([server.address], History().record, rate=1000, concurrency=1, orders=1)
        run(load)
    assert (load.sent, load.unsent) == (1, 0)


def test_the_rate_changes_while_it_runs() -> None:
    stop = threading.Event()
    with serving() as server:
        load = Load([server.address], History().record, rate=0.001, concurrency=4)
        running = threading.Thread(target=load.run, args=(stop,))
        running.start()
        try:
            wait_until("the first order", lambda: len(server.requests) == 1, timeout_s=20)
            load.set_rate(1000)
            wait_until("many orders", lambda: len(server.requests) > 20, timeout_s=20)
        finally:
            stop.set()
            running.join()


def test_the_rate_changes_before_it_runs() -> None:
    with serving() as server:
        told = History()
        load = Load([server.address], told.record, rate=0.001, orders=3)
        load.set_rate(100)
        run(load)
    assert sorted(call.intended_s for call in told.calls) == pytest.approx([0, 0.01, 0.02])


@pytest.mark.parametrize(("rate", "changed"), [(None, 1.0), (1.0, 0.0), (1.0, -1.0)])
def test_a_rate_that_can_not_be(rate: float | None, changed: float) -> None:
    with pytest.raises(ValueError, match="no rate"):
        Load(["127.0.0.1:1"], History().record, rate=rate).set_rate(changed)


# Orders


def test_addresses_take_turns() -> None:
    with serving() as one, serving() as other:
        run(Load([one.address, other.address], History().record, concurrency=4, orders=10))
    assert len(one.requests) == len(other.requests) == 5


def test_orders_differ() -> None:
    with serving() as server:
        run(Load([server.address], History().record, concurrency=4, orders=250))
    by_number = {int(request.idempotency_key.rpartition("-")[2]): request for request in server.requests}
    assert by_number.keys() == set(range(250))
    for at, request in by_number.items():
        assert request.customer_id == f"customer-{at % 100}"
        assert (request.amount_cents, request.currency) == (100 + at % 900, "EUR")


def test_outcomes() -> None:
    def answers(at: int, context: Any) -> None:
        if at == 0:
            context.abort(Code.PERMISSION_DENIED, "not you")
        if at in {1, 2}:
            context.abort(Code.INTERNAL, "who knows")

    with serving(answers) as server:
        told = History()
        run(Load([server.address], told.record, concurrency=1, orders=3))
    denied, retried, quick = told.calls
    assert (denied.outcome, denied.retried) == (CallOutcome.FAILED, False)
    assert "not you" in str(denied.error)
    assert (retried.outcome, retried.retried, retried.error) == (CallOutcome.ACKNOWLEDGED, True, None)
    assert (quick.outcome, quick.retried) == (CallOutcome.ACKNOWLEDGED, False)
    assert all(bool(call.order_id) == (call.error is None) for call in told.calls)


def test_an_order_that_may_be_there() -> None:
    with serving(lambda _, context: context.abort(Code.INTERNAL, "who knows")) as server:
        told = History()
        run(Load([server.address], told.record, orders=1, timeout_s=0.3))
    assert told.count(CallOutcome.UNKNOWN) == len(told.calls) == 1


@pytest.mark.parametrize("connections", [1, 2, 4])
def test_callers_share_so_many_connections(connections: int) -> None:
    together = threading.Barrier(4)
    peers: Counter[str] = Counter()

    def all_at_once(_at: int, context: Any) -> None:
        peers[context.peer()] += 1
        together.wait(20)

    with serving(all_at_once) as server:
        run(Load([server.address], History().record, concurrency=4, orders=8, connections=connections))
    assert sorted(peers.values()) == [8 // connections] * connections


# Its beginning and end


def test_calls_of_the_warm_up_are_sent_and_don_t_count() -> None:
    with serving() as server:
        told = History()
        run(Load([server.address], told.record, concurrency=2, warmup_s=0.5, orders=5))
    assert told.calls[0].begun_s < 0
    assert sum(call.begun_s >= 0 for call in told.calls) == 5
    assert len(server.requests) == len(told.calls) > 5


def test_an_open_loop_begins_with_the_warm_up() -> None:
    with serving() as server:
        told = History()
        run(Load([server.address], told.record, rate=20, concurrency=2, warmup_s=0.5, orders=2))
    first, second = sorted(call.intended_s for call in told.calls)[:2]
    assert (first, second) == pytest.approx((-0.5, -0.45))


@pytest.mark.parametrize("rate", [None, 100, 0.001])
def test_it_ends_after_its_duration(rate: float | None) -> None:
    with serving() as server:
        told = History()
        run(Load([server.address], told.record, rate=rate, concurrency=2, warmup_s=0.1, duration_s=0.3))
    assert told.calls


def test_it_ends_when_told_to_and_has_every_answer() -> None:
    stop = threading.Event()
    with serving(lambda at, _: stop.set() if at == 10 else None) as server:
        told = History()
        run(Load([server.address], told.record, concurrency=4, orders=MANY), stop)
    assert told.count(CallOutcome.ACKNOWLEDGED) == len(server.requests) < MANY


def test_a_record_that_raises_ends_it() -> None:
    def record(_call: LoadCall) -> None:
        raise ZeroDivisionError

    with serving() as server, pytest.raises(ZeroDivisionError):
        run(Load([server.address], record, concurrency=4, orders=MANY))


# What it says of a call's outcome


# Cancels
