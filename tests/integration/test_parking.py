"""Events whose effect fails: tried again, parked with what follows of their keys, redriven in order; or all stops."""

import dataclasses
import json
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any

import psycopg
import pytest

from brewctl.cli import dlq_parked
from brewctl.delivery import database, events
from brewctl.delivery.broker import Record
from brewctl.delivery.database import Pool
from brewctl.delivery.downstream import Downstream, Reject
from brewctl.delivery.events import Event
from brewctl.delivery.inbox import parking
from brewctl.delivery.inbox.failures import StoppedError
from brewctl.delivery.inbox.inbox import Inbox
from brewctl.delivery.repair.dead_letters import Filter
from brewctl.proto.orders_pb2 import OrderCancelled, OrderCreated
from brewctl.roles import inventory
from tests.conftest import Rig, limited
from tests.integration.reading import read_topic

TYPES = (events.ORDER_CREATED, events.ORDER_CANCELLED)


def event(outbox_id: int, order_id: str, seq: int = 1) -> Record:
    """A record of an order's event: created, or with another `seq` cancelled."""
    message = OrderCreated(order_id=order_id) if seq == 1 else OrderCancelled(order_id=order_id)
    key = events.aggregate_id(order_id)
    kind = TYPES[seq > 1]
    headers = events.headers_for(outbox_id, key, kind, node="order-1", event_id=uuid.uuid4(), seq=seq)
    return Record("topic", key.encode(), message.SerializeToString(), headers, 0, outbox_id)


class Applied:
    """A downstream that writes each event into a table, and fails for those that it is told to."""

    def __init__(self, rig: Rig, *, batch: bool = False, attempts: int = 3) -> None:
        rig.connection.execute("CREATE TABLE applied (at bigint GENERATED ALWAYS AS IDENTITY, key text, seq bigint)")
        self.failing: dict[str, Exception] = {}  # by order id
        self.calls: Counter[int] = Counter()
        form: dict[str, Any] = {"batch": self.all} if batch else {"handler": self.one}
        self.downstream = Downstream("applied", **form, events=TYPES, attempts=attempts)

    def one(self, event: Event[Any], tx: psycopg.Connection[Any]) -> None:
        self.calls[event.outbox_id] += 1
        tx.execute("INSERT INTO applied (key, seq) VALUES (%s, %s)", (event.key, event.seq))
        if error := self.failing.get(event.data.order_id):
            raise error

    def all(self, batch: Sequence[Event[Any]], tx: psycopg.Connection[Any]) -> None:
        for each in batch:
            self.one(each, tx)


def applied(rig: Rig, order_id: str | None = None) -> list[int]:
    key = order_id and events.aggregate_id(order_id)
    found = rig.connection.execute("SELECT seq FROM applied WHERE %s::text IS NULL OR key = %s ORDER BY at", (key, key))
    return [seq for (seq,) in found.fetchall()]


def ids(count: int) -> list[str]:
    return [str(uuid.uuid4()) for _ in range(count)]


@pytest.fixture(params=["handler", "batch"])
def app(rig: Rig, request: pytest.FixtureRequest) -> Applied:
    return Applied(rig, batch=request.param == "batch")


def parked(rig: Rig) -> list[parking.ParkedEvent]:
    with database.connect(rig.settings) as connection:
        return parking.find(connection, ["applied", "inventory"])


def test_one_event_of_many_is_tried_again_then_parked_and_what_follows_of_its_key_waits_behind_it(
    rig: Rig, pool: Pool, app: Applied
) -> None:
    orders = ids(200)
    bad = orders[70]
    app.failing[bad] = ValueError("no such\ncustomer \0")
    inbox = Inbox(rig.settings, pool, app.downstream, node="n")
    inbox.handle([event(number, order) for number, order in enumerate(orders, 1)])
    inbox.handle([event(201, bad, seq=2), event(202, orders[3], seq=2)])
    assert app.calls[71] >= app.downstream.attempts
    assert (inbox.tally.effects, inbox.tally.parked, inbox.tally.dead) == (200, 2, 0)
    assert (applied(rig, bad), applied(rig, orders[3])) == ([], [1, 2])
    first, second = parked(rig)
    assert (first.outbox_id, first.attempts, first.reason) == (71, 3, "ValueError: no such customer ?")
    assert (second.outbox_id, second.seq, second.attempts) == (201, 2, 0)
    assert (first.key, first.offset) == (events.aggregate_id(bad), 71)
    assert read_topic(rig.settings, dead_letters=True) == []


def test_a_redrive_applies_the_sequence_in_its_order_once_and_later_events_have_their_effect_again(
    rig: Rig, pool: Pool, app: Applied
) -> None:
    (bad,) = ids(1)
    app.failing[bad] = ValueError("not yet")
    inbox = Inbox(rig.settings, pool, app.downstream, node="n")
    records = [event(1, bad), event(2, bad, seq=2), event(3, bad, seq=3)]
    inbox.handle(records)
    inbox.handle(records)  # delivered again, they are not parked twice
    assert [each.seq for each in parked(rig)] == [1, 2, 3]
    key = events.aggregate_id(bad)
    with database.connect(rig.settings) as connection:
        still = parking.redrive(connection, app.downstream, [key], node="n")
        assert [(each.id, why) for each, why in still.refused] == [(parked(rig)[0].id, "ValueError: not yet")]
        assert applied(rig) == []
        app.failing.clear()
        assert [each.seq for each in parking.redrive(connection, app.downstream, [key], node="n").done] == [1, 2, 3]
        assert parking.redrive(connection, app.downstream, [key], node="n").done == []
    assert (applied(rig), parked(rig)) == ([1, 2, 3], [])
    inbox.handle([*records, event(4, bad, seq=4)])
    assert applied(rig) == [1, 2, 3, 4]


def test_an_event_that_is_dropped_has_no_effect_when_it_is_delivered_again(rig: Rig, pool: Pool, app: Applied) -> None:
    (bad,) = ids(1)
    app.failing[bad] = ValueError("never")
    inbox = Inbox(rig.settings, pool, app.downstream, node="n")
    inbox.handle([record := event(1, bad)])
    with database.connect(rig.settings) as connection:
        assert [each.outbox_id for each in parking.drop(connection, parked(rig)).done] == [1]
    app.failing.clear()
    inbox.handle([record, event(2, bad, seq=2)])
    assert applied(rig) == [2]


def test_a_rejected_event_is_parked_without_another_try(rig: Rig, pool: Pool, app: Applied) -> None:
    good, bad = ids(2)
    app.failing[bad] = Reject("the customer is gone")
    inbox = Inbox(rig.settings, pool, app.downstream, node="n")
    inbox.handle([event(1, good), event(2, bad)])
    (one,) = parked(rig)
    assert (one.reason, one.attempts, inbox.tally.effects) == ("the customer is gone", 1, 1)
    assert app.calls[2] <= 2, "once within its batch, once alone"


def test_a_cause_that_hits_every_event_parks_a_bounded_number_and_stops(rig: Rig, pool: Pool, app: Applied) -> None:
    orders = ids(500)
    app.failing.update(dict.fromkeys(orders, RuntimeError("a bug")))
    settings = limited(rig.settings, failures_in_a_row=5)
    inbox = Inbox(settings, pool, app.downstream, node="n")
    records = [event(number, order) for number, order in enumerate(orders, 1)]
    with pytest.raises(StoppedError, match="5 events in a row failed: RuntimeError: a bug"):
        inbox.handle(records)
    assert "stopped: 5 events in a row failed" in inbox.work().trouble
    assert (len(parked(rig)), applied(rig)) == (0, [])
    app.failing.clear()
    inbox.handle(records)
    assert (len(applied(rig)), inbox.work().trouble) == (500, "")


def test_one_at_a_time_too_it_stops_after_a_bounded_number(rig: Rig, pool: Pool, app: Applied) -> None:
    orders = ids(20)
    app.failing.update(dict.fromkeys(orders, RuntimeError("a bug")))
    inbox = Inbox(limited(rig.settings, failures_in_a_row=5), pool, app.downstream, node="n")
    for number in range(1, 5):
        inbox.handle([event(number, orders[number])])
    with pytest.raises(StoppedError):
        inbox.handle([event(5, orders[5])])
    assert len(parked(rig)) == 4


def test_a_check_that_rejects_everything_does_not_empty_the_topic(rig: Rig, pool: Pool) -> None:
    """The SQL form: a constraint that somebody broke."""
    rig.connection.execute("ALTER TABLE inventory_reservations ADD CONSTRAINT broken CHECK (node_id = 'nobody')")
    inbox = Inbox(rig.settings, pool, inventory.DOWNSTREAM, node="n")
    records = [event(number, order) for number, order in enumerate(ids(1000), 1)]
    with pytest.raises(StoppedError, match="postgres rejected its effect"):
        inbox.handle(records)
    assert parked(rig) == []
    assert read_topic(rig.settings, dead_letters=True) == []
    rig.connection.execute("ALTER TABLE inventory_reservations DROP CONSTRAINT broken")
    inbox.handle(records)
    assert inbox.tally.effects == 1000


def test_a_missing_table_parks_nothing(rig: Rig, pool: Pool) -> None:
    lost = dataclasses.replace(inventory.DOWNSTREAM, sql="INSERT INTO nowhere SELECT order_id FROM fresh")
    inbox = Inbox(rig.settings, pool, lost, node="n")
    with pytest.raises(StoppedError, match="nowhere"):
        inbox.handle([event(1, ids(1)[0])])
    assert parked(rig) == []


def test_keys_go_on_beside_one_that_is_parked_by_another_node(rig: Rig, pool: Pool) -> None:
    """The SQL form: what one node parks, the next one that has its partition finds."""
    bad, good = ids(2)
    rig.connection.execute(
        "CREATE FUNCTION reject() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN IF new.order_id = '{bad}' THEN RAISE 'no stock'; END IF; RETURN new; END $$;"
        "CREATE TRIGGER reject BEFORE INSERT ON inventory_reservations FOR EACH ROW EXECUTE FUNCTION reject()"
    )
    ours, theirs = (Inbox(rig.settings, pool, inventory.DOWNSTREAM, node=name) for name in ("a", "b"))
    ours.handle([event(1, good), event(2, bad)])
    rig.connection.execute("DROP TRIGGER reject ON inventory_reservations")
    theirs.handle([event(3, bad, seq=2), event(4, good, seq=2)])
    assert (theirs.tally.effects, theirs.tally.parked) == (1, 1)
    released = rig.connection.execute("SELECT order_id::text, released_at IS NOT NULL FROM inventory_reservations")
    assert released.fetchall() == [(good, True)]
    with database.connect(rig.settings) as connection:
        parking.redrive(connection, inventory.DOWNSTREAM, [events.aggregate_id(bad)], node="cli")
    assert rig.connection.execute("SELECT count(*) FROM inventory_reservations WHERE seq = 2").fetchone() == (2,)


def test_the_commands_show_redrive_and_drop_parked_events_beside_dead_letters(rig: Rig, pool: Pool) -> None:
    bad, worse, good = ids(3)
    rig.connection.execute("ALTER TABLE inventory_reservations ADD CONSTRAINT closed CHECK (node_id <> 'n') NOT VALID")
    inbox = Inbox(rig.settings, pool, dataclasses.replace(inventory.DOWNSTREAM, attempts=1), node="n")
    inbox.handle([event(1, bad), event(2, worse)])
    inbox.handle([event(3, bad, seq=2), event(4, good, seq=2)])
    listed = rig.brewctl("dlq", "list")
    assert listed.returncode == 0, listed.stderr
    found = [json.loads(line) for line in rig.brewctl("dlq", "list", "--json").stdout.splitlines()]
    assert [(each["state"], each["group"], each["attempts"]) for each in found] == [
        ("parked", "inventory", attempts) for attempts in (1, 1, 0, 1)
    ]
    first, second, _, last = (each["id"] for each in found)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["id", *(each["id"] for each in found)]
    assert "(waits behind an event of its key)" in listed.stdout
    shown = rig.brewctl("dlq", "show", first)
    assert "violates check constraint" in shown.stdout
    assert f"brewctl dlq redrive {first}" in shown.stderr
    refused = rig.brewctl("dlq", "redrive", first)
    assert (refused.returncode, refused.stdout) == (0, "redriven=2 already=0 refused=0\n")  # by a node of another name
    again = rig.brewctl("dlq", "redrive", first)
    assert (again.returncode, again.stdout) == (0, "redriven=0 already=1 refused=0\n")
    rig.connection.execute("ALTER TABLE inventory_reservations ADD CONSTRAINT none CHECK (false) NOT VALID")
    refused = rig.brewctl("dlq", "redrive", "--order", worse)
    assert (refused.returncode, refused.stdout) == (1, "redriven=0 already=0 refused=1\n")
    assert "violates check constraint" in refused.stderr
    unknown = rig.brewctl("dlq", "redrive", "p999999")
    assert (unknown.returncode, "no parked event p999999" in unknown.stderr) == (1, True)
    assert rig.brewctl("dlq", "drop", second, last).returncode == 2
    assert rig.brewctl("dlq", "drop", second, last, "--yes").stdout == "dropped=2 already=0 refused=0\n"
    assert "nor parked events" in rig.brewctl("dlq", "list").stderr
    assert rig.brewctl("dlq", "list", "--all").stdout.count("[dropped]") == 2


def test_a_group_is_found_by_the_name_that_kafka_has_of_it(rig: Rig, pool: Pool) -> None:
    prefixed = dataclasses.replace(rig.settings, group_prefix="blue-")
    rig.connection.execute("ALTER TABLE inventory_reservations ADD CONSTRAINT closed CHECK (node_id <> 'n') NOT VALID")
    downstream = dataclasses.replace(inventory.DOWNSTREAM, attempts=1)
    Inbox(prefixed, pool, downstream, node="n").handle([event(1, ids(1)[0])])
    with database.connect(prefixed) as connection:
        for group, count in (("blue-inventory", 1), ("blue-notifications", 0), ("", 1)):
            assert len(dlq_parked.Homes(prefixed, connection).find(Filter(group=group), settled=False)[0]) == count
