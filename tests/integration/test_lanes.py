"""Lanes: a handler called for many keys at once, in order for each of them, and never twice without its event id."""

import uuid

import pytest

from tests.conftest import Rig
from tests.integration.lanes_tools import Receiver, handled, make_table, record, running, take, until, waiting


@pytest.fixture(autouse=True)
def table(rig: Rig) -> None:
    make_table(rig)


def ids(count: int) -> list[str]:
    return [str(uuid.uuid4()) for _ in range(count)]


def test_two_processes_handle_the_events_of_each_key_in_order_and_keys_side_by_side(rig: Rig) -> None:
    orders = ids(20)
    receiver = Receiver(lanes=16)
    records = [record(20 * seq + place, order, seq=seq) for seq in range(1, 9) for place, order in enumerate(orders)]
    with running(rig.settings, receiver.downstream, node="n-1") as one:
        with running(rig.settings, receiver.downstream, node="n-2") as two:
            inbox = take(rig.settings, receiver.downstream, records)
            take(rig.settings, receiver.downstream, records)  # delivered again
            until("all are handled", lambda: not waiting(rig))
    assert (inbox.tally.waiting, inbox.tally.effects) == (160, 0)
    assert one.work(inbox.work()).effects + two.work(inbox.work()).effects == 160
    for order in orders:
        assert receiver.seqs(order) == handled(rig, order) == [*range(1, 9)]
    assert receiver.most_of_a_key == 1
