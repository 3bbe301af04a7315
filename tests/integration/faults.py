"""Every fault that a chain can have, each made once, of an order of its own.

Each generator yields a fault's name, the check that must name it, and how.
"""

from collections.abc import Iterator
from typing import NamedTuple

from brewctl.roles import inventory
from tests.integration.chain_tools import Chain
from tests.integration.kafka_tools import good_record, replaced


class Fault(NamedTuple):
    """What a check must say, as often as it is there."""

    check: str
    says: str


Faults = dict[str, Fault]


def spoil_records(chain: Chain) -> Iterator[tuple[str, Fault]]:
    """Make faults of records."""
    stranger = good_record()
    at = chain.raw(stranger.key, stranger.value, stranger.headers)
    yield "a stranger", Fault("strangers", rf"outbox \d+ at 0@{at} is not in the outbox")
    yield "its effect", Fault("inventory-orphans", rf"inventory effect of {stranger.order_id}, which is no order")
    yield "its other effect", Fault("notifications-orphans", rf"notifications effect of {stranger.order_id}")
    yield "its dedup row", Fault("inventory-dedup", r"outbox \d+ was processed, and is not in the outbox")
    yield "its other dedup row", Fault("notifications-dedup", r"outbox \d+ was processed, and is not in the outbox")

    row = chain.order(topic="elsewhere")
    chain.send(row)
    yield "a row for another topic", Fault("strangers", rf"outbox {row.outbox_id} at 0@\d+ is for topic elsewhere")

    row = chain.order()
    chain.send(row, key=b"order-\x1b[31m")
    yield "a wrong key", Fault("wrong-key", rf"outbox {row.outbox_id} at .* key is order-\?\[31m, not order-")

    row = chain.order()
    for name, headers, says in (
        (
            "another order of headers",
            row.headers[::-1],
            "its headers are aggregate-seq, event-id, content-type, event-type",
        ),
        ("one header too many", [*row.headers, ("more", b"")], "its headers are .*aggregate-seq, more"),
        ("a wrong tenant", replaced(row.headers, tenant_id=b"coffee"), "tenant-id is coffee, not tea"),
        ("a wrong trace", replaced(row.headers, trace_id=b"1"), "trace-id is 1, not "),
        ("no node", replaced(row.headers, publisher_node=b""), "publisher-node is empty"),
    ):
        chain.send(row, headers=headers)
        yield name, Fault("wrong-headers", f"outbox {row.outbox_id} at .*: {says}")

    row = chain.order()
    unknown_field = b"\xfa\x01\x00"
    chain.send(row, value=row.value + unknown_field)
    yield "another payload", Fault("wrong-payload", rf"outbox {row.outbox_id} at .*: its \d+ bytes are not the row's")

    row = chain.order()
    chain.execute("UPDATE orders SET amount_cents = 1, currency = 'USD' WHERE id = %s", row.order_id)
    chain.send(row)
    yield "another order", Fault("unlike-order", rf"outbox {row.outbox_id} at .*: amount_cents, currency not as in")

    row = chain.order()
    chain.send(row)
    chain.send(row, partition=1)
    yield "a key in two partitions", Fault("split-keys", f"outbox {row.outbox_id} is in partitions 0, 1")

    row = chain.order()
    twin = chain.twin(row)
    chain.send(twin)
    chain.send(row)
    chain.send(twin)
    yield "two events", Fault("event-per-order", f"{row.order_id} has outbox rows {row.outbox_id}, {twin.outbox_id}")
    yield "in the wrong order", Fault("out-of-order", f"outbox {row.outbox_id} came .* after outbox {twin.outbox_id}")

    row = chain.order()
    chain.mark(row)
    yield "a lost row", Fault("lost", f"outbox {row.outbox_id} of order-{row.order_id}, published by order-1")
    yield "no reservation of it", Fault("inventory-missing", f"{row.order_id} .* {row.outbox_id} is not in the topic")
    yield "no notification", Fault("notifications-missing", f"{row.order_id} .* {row.outbox_id} is not in the topic")


def spoil_changes(chain: Chain) -> Iterator[tuple[str, Fault]]:
    """Make faults of cancelled orders, and of events that have used an outbox id again."""
    reused = chain.order()
    chain.send(reused, headers=replaced(reused.headers, event_id=b"0" * 8 + b"-0000" * 3 + b"-" + b"0" * 12))
    says = rf"outbox {reused.outbox_id} at .* is another event: its event id is 0{{8}}-.*, the row's "
    yield "another event of its outbox id", Fault("strangers", says)
    chain.send(reused)

    untold, twice, numbered, unreleased, released, untimely, swapped = (chain.order() for _ in range(7))
    for row in (untold, twice, numbered, unreleased, released, untimely, swapped):
        chain.send(row, partition=3)
    chain.consume()
    chain.execute("UPDATE orders SET status = 'ORDER_STATUS_CANCELLED' WHERE id = %s", untold.order_id)
    yield (
        "a change without an event",
        Fault("event-per-order", f"{untold.order_id} is cancelled, and has no order.canc"),
    )

    first = chain.cancel(twice)
    chain.send(first, partition=3)
    ((at,),) = chain.execute("SELECT cancelled_at FROM orders WHERE id = %s", twice.order_id).fetchall()
    second = chain.cancelled_event(twice, at)
    chain.send(second, partition=3)
    says = f"{twice.order_id} has more than one order.cancelled: outbox rows {first.outbox_id}, {second.outbox_id}"
    yield "an event without a change", Fault("event-per-order", says)

    cancelled = chain.cancel(numbered)
    chain.execute("UPDATE outbox SET aggregate_seq = 3 WHERE id = %s", cancelled.outbox_id)
    chain.send(chain.row(numbered.order_id), partition=3)
    says = f"outbox {cancelled.outbox_id} of .* has the number 3 and is event 2 of its aggregate"
    yield "a gap in the numbers", Fault("numbered", says)

    cancelled = chain.cancel(unreleased)
    chain.send(cancelled, partition=3)
    undone = [chain.cancel(untimely), chain.cancel(swapped)]
    for row in undone:
        chain.send(row, partition=3)
    chain.consume()
    chain.execute(
        "UPDATE inventory_reservations SET released_at = NULL, seq = 1 WHERE order_id = %s", unreleased.order_id
    )
    says = f"{unreleased.order_id} is ORDER_STATUS_CANCELLED, and its inventory effect shows ORDER_STATUS_NEW: outbox "
    yield "a reservation for ever", Fault("inventory-state", f"{says}{cancelled.outbox_id} counts as processed")
    chain.execute("UPDATE inventory_reservations SET released_at = now() WHERE order_id = %s", released.order_id)
    says = f"{released.order_id} is ORDER_STATUS_NEW, and its inventory effect shows ORDER_STATUS_CANCELLED$"
    yield "a reservation of an order that is not cancelled, released", Fault("inventory-state", says)
    chain.execute("UPDATE notifications_log SET state = 'created' WHERE order_id = %s", untimely.order_id)
    yield (
        "a customer who was not told",
        Fault("notifications-state", f"{untimely.order_id} is .* shows ORDER_STATUS_NEW"),
    )
    for group in ("inventory", "notifications"):
        chain.execute(
            "UPDATE processed_events SET processed_at = now() + interval '1 h' WHERE (consumer, outbox_id) = (%s, %s)",
            group,
            swapped.outbox_id,
        )
        says = f"outbox {swapped.outbox_id} had its {group} effect after outbox {undone[1].outbox_id} of the same key"
        yield f"{group} in the wrong order", Fault(f"{group}-sequence", says)


def spoil_letters(chain: Chain) -> Iterator[tuple[str, Fault]]:
    """Make faults of dead letters."""
    row = chain.order()
    at = chain.send(row)
    letter = chain.bury(row, 100_000)
    yield "a letter of nothing", Fault("dead-letters", f"0@{letter} names 0@100000, where no record is")
    letter = chain.bury(row, at, value=b"another")
    yield "a letter of another record", Fault("dead-letters", f"0@{letter} is not the record at 0@{at}")
    letter = chain.bury(row, at, topic="elsewhere")
    yield "a letter of another topic", Fault("dead-letters", f"0@{letter} names no record of the topic")
    letter = chain.bury(row, at)
    chain.settle(letter, "redriven", place=(0, 100_000))
    yield "a letter redriven to nowhere", Fault("dead-letters", f"0@{letter} was redriven to 0@100000, where no record")
    letter = chain.bury(row, at)
    chain.settle(letter, "redriven", place=(0, 0))
    yield (
        "a copy of something else",
        Fault("dead-letters", f"0@{letter} is not the record at 0@0, where it was"),
    )


def spoil_tables(chain: Chain) -> Iterator[tuple[str, Fault]]:
    """Make faults in the tables, behind both groups."""
    orderless, undone, alone = (chain.order() for _ in range(3))
    at = [chain.send(row, partition=2) for row in (orderless, undone, alone)][-1]
    chain.consume()

    ((bare,),) = chain.execute(
        "INSERT INTO orders (id, tenant_id, customer_id, amount_cents, currency, status)"
        " VALUES (gen_random_uuid(), 'tea', 'bob', 1, 'EUR', 'ORDER_STATUS_NEW') RETURNING id::text"
    ).fetchall()
    yield "no event", Fault("event-per-order", f"order {bare} has no outbox row")
    yield "so no reservation", Fault("inventory-missing", f"order {bare} has no inventory effect: it has no event")
    yield (
        "and no notification",
        Fault("notifications-missing", f"order {bare} has no notifications effect: it has no event"),
    )

    chain.execute("DELETE FROM orders WHERE id = %s", orderless.order_id)
    yield "no order", Fault("order-per-event", f"outbox {orderless.outbox_id} is of order-{orderless.order_id}, which")
    yield "a reservation of it", Fault("inventory-orphans", f"inventory effect of {orderless.order_id}")
    yield "a notification of it", Fault("notifications-orphans", f"notifications effect of {orderless.order_id}")

    chain.execute("DELETE FROM inventory_reservations WHERE order_id = %s", undone.order_id)
    yield "a lost effect", Fault("inventory-missing", f"{undone.order_id} .*: outbox {undone.outbox_id} counts as proc")
    yield (
        "a dedup row alone",
        Fault("inventory-dedup", f"{undone.outbox_id} was processed, and order {undone.order_id}"),
    )

    chain.execute("DELETE FROM processed_events WHERE consumer = 'inventory' AND outbox_id = %s", alone.outbox_id)
    yield (
        "an effect alone",
        Fault("inventory-dedup", f"{alone.order_id} has its .*{alone.outbox_id} was never"),
    )
    yield "its offset", Fault("inventory-offsets", f"2@{at} is committed, and outbox {alone.outbox_id} is not in")

    row = chain.order()
    chain.execute("UPDATE outbox SET failed_at = now(), failure = E'too\\nlarge' WHERE id = %s", row.outbox_id)
    behind = chain.twin(row)
    says = rf"outbox {row.outbox_id} .* is set aside \(too\?large\): brewctl outbox retry {row.outbox_id}$"
    yield "a row set aside", Fault("unpublished", says)
    yield (
        "a row behind it",
        Fault("unpublished", f"{behind.outbox_id} .* behind {row.outbox_id}.* {row.outbox_id}$"),
    )
    yield "two events again", Fault("event-per-order", f"order {row.order_id} has outbox rows")
    yield "not reserved yet", Fault("inventory-missing", f"{row.order_id} .* {row.outbox_id} is not published")
    yield "not notified yet", Fault("notifications-missing", f"{row.order_id} .* {row.outbox_id} is not published")


def spoil_offsets(chain: Chain) -> Iterator[tuple[str, Fault]]:
    """Let `notifications` pass records over, one of which is dead to `inventory`."""
    dead, passed = chain.order(), chain.order()
    dead_at = chain.send(dead, partition=4, headers=replaced(dead.headers, content_type=b"text/plain"))
    at = chain.send(passed, partition=5)
    chain.consume([inventory.DOWNSTREAM])
    chain.commit("notifications", {4: dead_at + 1, 5: at + 8})
    yield "an unreadable record", Fault("lost", f"outbox {dead.outbox_id} ")
    yield "a dead one", Fault("inventory-missing", rf"{dead.order_id} .* dead letter: brewctl dlq redrive \d+:\d+$")
    yield "no letter of it", Fault("notifications-offsets", f"4@{dead_at} is committed, and unreadable without a dead")
    yield (
        "so never notified",
        Fault("notifications-missing", f"{dead.order_id} .*{dead.outbox_id} is not in the"),
    )
    yield (
        "an offset beyond the end",
        Fault("notifications-offsets", f"5 is .* to {at + 8}, and ends at {at + 1}$"),
    )
    yield (
        "a record behind it",
        Fault("notifications-offsets", f"5@{at} is .* and outbox {passed.outbox_id} is not"),
    )
    yield "passed over", Fault("notifications-missing", f"{passed.order_id} .* at 5@{at} was passed over")


def spoil_keys(chain: Chain) -> Iterator[tuple[str, Fault]]:
    """Double an effect, which only a table without its key lets happen. No consumer runs on it."""
    ((order_id,),) = chain.execute(
        "SELECT order_id::text FROM inventory_reservations JOIN notifications_log USING (order_id)"
        " JOIN orders ON id = order_id ORDER BY order_id LIMIT 1"
    ).fetchall()
    chain.execute("ALTER TABLE inventory_reservations DROP CONSTRAINT inventory_reservations_pkey")
    chain.execute("INSERT INTO inventory_reservations (order_id, node_id) VALUES (%s, 'zombie')", order_id)
    yield "a second reservation", Fault("inventory-doubled", f"order {order_id} has 2 inventory effects")
    chain.execute("ALTER TABLE notifications_log DROP CONSTRAINT notifications_log_pkey")
    chain.execute("INSERT INTO notifications_log VALUES (%s, 'zombie', 'push')", order_id)
    yield "a second notification", Fault("notifications-doubled", f"order {order_id} has 2 notifications effects")


def spoil(chain: Chain) -> Faults:
    """Make them all, and return what verify must say."""
    faults: Faults = {}
    for some in (spoil_records, spoil_changes, spoil_letters, spoil_tables, spoil_offsets, spoil_keys):
        faults |= some(chain)
    return faults
