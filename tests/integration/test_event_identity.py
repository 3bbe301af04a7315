"""An event is its outbox id and its event id: a restored database uses outbox ids again, for other events."""

import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from brewctl.delivery import events
from brewctl.delivery.broker import Producer, Record
from brewctl.delivery.database import Pool
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.inbox.inbox import Inbox
from brewctl.delivery.outbox.publisher import Publisher
from brewctl.proto.orders_pb2 import OrderCreated
from brewctl.roles import inventory, notifications
from tests.conftest import Rig
from tests.integration.outbox_tools import create_order
from tests.integration.reading import read_topic

STORY = (inventory.DOWNSTREAM, notifications.DOWNSTREAM)
ORDERS = 5


def effects(rig: Rig, pool: Pool, records: Sequence[Record], downstream: Downstream = inventory.DOWNSTREAM) -> int:
    """Hand records to a new consumer, and return how many effects it has from them."""
    inbox = Inbox(rig.settings, pool, downstream, node="node-1")
    inbox.handle(records)
    assert inbox.tally.dead == 0
    assert inbox.tally.effects + inbox.tally.skipped == len(records)
    return inbox.tally.effects


def published(rig: Rig, pool: Pool, producer: Producer) -> list[Record]:
    """Make orders and publish them, and return everything in the topic."""
    for _ in range(ORDERS):
        create_order(rig)
    assert Publisher(rig.settings, pool, node="order-1").publish_batch(producer) == ORDERS
    return read_topic(rig.settings)


def order_ids(records: Sequence[Record]) -> set[str]:
    return {OrderCreated.FromString(record.value or b"").order_id for record in records}


def outbox_ids(records: Sequence[Record]) -> set[bytes]:
    return {dict(record.headers)["outbox-id"] for record in records}


@pytest.mark.parametrize(
    "restore",
    [
        "TRUNCATE outbox, orders RESTART IDENTITY",
        "DELETE FROM outbox; DELETE FROM orders; SELECT setval(pg_get_serial_sequence('outbox', 'id'), 1, false)",
    ],
)
def test_orders_whose_outbox_ids_were_used_before_have_their_effects(
    rig: Rig, pool: Pool, producer: Producer, restore: str
) -> None:
    before = published(rig, pool, producer)
    assert [effects(rig, pool, before, each) for each in STORY] == [ORDERS, ORDERS]
    rig.connection.execute(restore)

    everything = published(rig, pool, producer)
    old = order_ids(before)
    new = [record for record in everything if order_ids([record]).isdisjoint(old)]
    assert outbox_ids(new) == outbox_ids(before)
    assert [effects(rig, pool, new, each) for each in STORY] == [ORDERS, ORDERS]
    for table in ("inventory_reservations", "notifications_log"):
        query = f"SELECT count(*) FROM orders JOIN {table} ON order_id = id"
        assert rig.connection.execute(query).fetchone() == (ORDERS,)

    # Redelivered, and both of them again from the beginning, as after a reset of the groups.
    assert [effects(rig, pool, new, each) for each in STORY] == [0, 0]
    assert [effects(rig, pool, before, each) for each in STORY] == [0, 0]
    assert [effects(rig, pool, everything, each) for each in STORY] == [0, 0]


def test_a_batch_may_have_both_events_of_one_outbox_id(rig: Rig, pool: Pool, producer: Producer) -> None:
    published(rig, pool, producer)
    rig.connection.execute("TRUNCATE outbox, orders RESTART IDENTITY")
    everything = published(rig, pool, producer)
    assert effects(rig, pool, [*everything, *everything]) == 2 * ORDERS
    assert effects(rig, pool, everything[::-1]) == 0


def test_an_outbox_id_may_be_used_more_than_twice(rig: Rig, pool: Pool) -> None:
    several = [record(1, event_id=str(uuid.uuid4())) for _ in range(5)]
    assert [effects(rig, pool, [each]) for each in several] == [1] * 5
    assert [effects(rig, pool, [each]) for each in several] == [0] * 5


# Beside the version before


def record(outbox_id: int, *, event_id: str | None) -> Record:
    """A record of an order of its own."""
    order = OrderCreated(order_id=str(uuid.uuid4()), tenant_id="brew", trace_id="0" * 32)
    key = events.aggregate_id(order.order_id)
    headers = events.headers_for(outbox_id, key, "order.created", node="order-1", event_id=event_id)
    return Record("topic", key.encode(), order.SerializeToString(), headers, 0, outbox_id)


def without_id(of: Record) -> Record:
    """The record as a publisher of the version before sends it."""
    return of._replace(headers=[header for header in of.headers if header[0] != "event-id"])


def test_what_the_version_before_has_processed_comes_again_with_an_id(rig: Rig, pool: Pool) -> None:
    event = record(1, event_id=str(uuid.uuid4()))
    rig.connection.execute("INSERT INTO processed_events (consumer, outbox_id) VALUES ('inventory', 1)")
    assert effects(rig, pool, [event]) == 0
    assert effects(rig, pool, [without_id(event)]) == 0


def test_a_record_of_the_version_before_comes_again_after_the_one_with_an_id(rig: Rig, pool: Pool) -> None:
    event = record(1, event_id=str(uuid.uuid4()))
    assert effects(rig, pool, [event]) == 1
    assert effects(rig, pool, [without_id(event)]) == 0
    assert effects(rig, pool, [event, without_id(event)]) == 0


def test_a_record_comes_with_and_without_an_id_in_one_batch(rig: Rig, pool: Pool) -> None:
    first, second = (record(number, event_id=str(uuid.uuid4())) for number in (1, 2))
    assert effects(rig, pool, [first, without_id(first), without_id(second), second]) == 2


def test_a_consumer_of_the_version_before_writes_its_row_beside_ours(rig: Rig, pool: Pool) -> None:
    event = record(1, event_id=str(uuid.uuid4()))
    effects(rig, pool, [event])
    again = rig.connection.execute(
        "INSERT INTO processed_events (consumer, outbox_id) VALUES ('inventory', 1), ('inventory', 2)"
        " ON CONFLICT (consumer, outbox_id) DO NOTHING RETURNING outbox_id"
    ).fetchall()
    assert again == [(2,)]


# Two consumers at the same moment


@pytest.mark.parametrize(("same", "expected"), [(False, [1, 1]), (True, [0, 1])])
def test_a_zombie_takes_an_event_of_an_outbox_id_while_another_takes_one(
    rig: Rig, pool: Pool, same: bool, expected: list[int]
) -> None:
    """Two event ids of one outbox id are two effects, also where neither consumer saw the other's row at its start."""
    first = record(1, event_id=str(uuid.uuid4()))
    second = first if same else record(1, event_id=str(uuid.uuid4()))
    rig.connection.execute(
        "CREATE FUNCTION held() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN new; END $$;"
        "CREATE TRIGGER held BEFORE INSERT ON inventory_reservations FOR EACH ROW EXECUTE FUNCTION held()"
    )

    def both_wait() -> bool:
        (count,) = rig.connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ).fetchone() or (0,)
        return bool(count == 2)

    rig.connection.execute("SELECT pg_advisory_lock(7)")
    with ThreadPoolExecutor(2) as executor:
        try:
            running = [executor.submit(effects, rig, pool, [each]) for each in (first, second)]
            rig.wait("both consumers in the middle of their transactions", both_wait)
        finally:
            rig.connection.execute("SELECT pg_advisory_unlock(7)")
        assert sorted(each.result() for each in running) == expected
    assert [effects(rig, pool, [each]) for each in (first, second)] == [0, 0]
