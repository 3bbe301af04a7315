"""Lanes between events that are new and those that were put back: neither waits for ever for the other."""

import pytest

from brewctl.delivery import events
from brewctl.delivery.downstream import Later
from brewctl.delivery.events import Event
from brewctl.sql import doctor_queries
from tests.conftest import Rig
from tests.integration.lanes_tools import Gate, Receiver, ids, record, until

LANES = pytest.mark.parametrize("lanes", [1, 2, 5])


def put_back(receiver: Receiver, *orders: str, due: str) -> None:
    """Let the events of these orders have failed once, to be tried again then."""
    receiver.rig.connection.execute(
        "UPDATE waiting_events SET attempts = 1, failure = 'no', next_try_at = clock_timestamp() + %s::interval"
        " WHERE consumer = %s AND key = ANY(%s)",
        [due, receiver.group, [events.aggregate_id(order) for order in orders]],
    )


def gated(receiver: Receiver, orders: list[str]) -> dict[str, Gate]:
    """Hold the calls for these orders, each at a gate of its own."""
    gates = {order: Gate() for order in orders}
    receiver.answers.update(gates)
    return gates


def called(receiver: Receiver) -> list[str]:
    """Return the orders that were called for, in their order."""
    return [order for order, _, _ in receiver.calls]


@LANES
def test_an_event_that_failed_gets_the_next_lane_though_new_ones_wait_for_it(laned: Rig, lanes: int) -> None:
    bad, *fresh = ids(lanes + 6)
    receiver = Receiver(laned, lanes=lanes)
    gates = gated(receiver, fresh)
    receiver.take(*(record(order) for order in (bad, *fresh)))
    put_back(receiver, bad, due="1 hour")
    with receiver.running():
        until("all lanes are taken", lambda: len(called(receiver)) == lanes)
        assert bad not in called(receiver)
        put_back(receiver, bad, due="-1 second")
        gates[called(receiver)[0]].open()
        until("one more is called", lambda: len(called(receiver)) > lanes)
        assert called(receiver)[lanes] == bad
        for gate in gates.values():
            gate.open()
        until("all are handled", lambda: not receiver.rows())
    assert len(receiver.handled()) == len(fresh) + 1


@LANES
def test_a_new_event_gets_a_lane_though_those_that_failed_would_fill_them_all(laned: Rig, lanes: int) -> None:
    *bad, fresh = ids(3 * lanes + 1)
    receiver = Receiver(laned, lanes=lanes)
    gates = gated(receiver, bad)
    receiver.take(*(record(order) for order in bad))
    put_back(receiver, *bad, due="-1 second")
    half = max(1, lanes // 2)
    with receiver.running():
        until("they have their lanes", lambda: len(called(receiver)) == half)
        receiver.take(record(fresh))
        if lanes == 1:
            gates[called(receiver)[0]].open()
        until("the new one is handled", lambda: receiver.handled(fresh) == [1])
        assert called(receiver)[half] == fresh
        for gate in gates.values():
            gate.open()
        until("all are handled", lambda: not receiver.rows())


@pytest.mark.parametrize("lanes", [1, 2])
def test_events_that_are_put_off_without_a_reason_for_ever_leave_a_lane_to_new_ones(laned: Rig, lanes: int) -> None:
    busy, (fresh,) = ids(2 * lanes), ids(1)
    receiver = Receiver(laned, lanes=lanes)

    def later(_event: Event[object]) -> None:
        raise Later(0)

    receiver.answers.update(dict.fromkeys(busy, later))
    receiver.take(*(record(order) for order in busy))
    with receiver.running():
        until(
            "all were put off, some again",
            lambda: set(called(receiver)) == set(busy) and len(receiver.calls) > 4 * lanes,
        )
        receiver.take(record(fresh))
        until("the new one is handled", lambda: receiver.handled(fresh) == [1])
        (row,) = [row for row in laned.connection.execute(doctor_queries["waiting"]) if row[0] == receiver.group]
        assert row[3:] == (0, None), "none of them has failed"
        receiver.answers.clear()
        until("all are handled", lambda: not receiver.rows())
