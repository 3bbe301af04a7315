"""Each check of `verify` and each verdict of `chaos`, and a mutation of the system that it must catch."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from brewctl.delivery.broker import Producer, Record
from brewctl.proto.orders_pb2 import OrderCancelled
from tests.conftest import Rig
from tests.integration.kafka_tools import remove_records
from tests.mutations.changes import GROUPS

ORDERS = 6
_LATE_S = 3.0  # for what never comes: older than this it is missing
_NEVER_S = 3600.0  # for everything else: nothing is late


def _nothing(_rig: Rig) -> None:
    pass


def _forget_an_order(rig: Rig) -> None:
    """Do as a PostgreSQL does that has lost its last commits."""
    rig.wait("the effects", lambda: rig.counts().reservations == rig.counts().notifications == ORDERS)
    rig.connection.execute("DELETE FROM orders WHERE id = (SELECT id FROM orders ORDER BY id LIMIT 1)")


def _publish_again(rig: Rig) -> None:
    """Let the publisher send everything once more, when each event has had its effect."""

    def had_its_effect() -> bool:
        (effects,) = rig.connection.execute("SELECT count(*) FROM effect_ledger").fetchone() or (0,)
        return int(str(effects)) >= ORDERS

    rig.wait("the first effects", had_its_effect)
    rig.connection.execute("UPDATE outbox SET published_at = NULL")


def _cancel(rig: Rig, *, events: int = 1) -> None:
    """Cancel all orders, each with so many events of it."""
    with rig.connection.transaction():
        rows = rig.connection.execute(
            "UPDATE orders SET status = 'ORDER_STATUS_CANCELLED', cancelled_at = clock_timestamp()"
            " RETURNING id::text, tenant_id, cancelled_at"
        ).fetchall()
        for order_id, tenant_id, at in rows * events:
            said = OrderCancelled(order_id=str(order_id), tenant_id=str(tenant_id), trace_id="1" * 32)
            assert isinstance(at, datetime)
            said.cancelled_at.FromDatetime(at)
            rig.connection.execute(
                "SELECT outbox_add(%s, %s, 'order.cancelled', %s, %s, %s)",
                (rig.settings.topic, f"order-{order_id}", said.SerializeToString(), tenant_id, said.trace_id),
            )


def _cancel_unsaid(rig: Rig) -> None:
    _cancel(rig, events=0)


def _cancel_twice(rig: Rig) -> None:
    _cancel(rig, events=2)


def _send_rubbish(rig: Rig) -> None:
    producer = Producer(rig.settings, node="mutation")
    producer.send([Record(rig.settings.topic, b"key", b"rubbish", [])], timeout_s=30)
    producer.close()


def _remove_what_others_have_read(rig: Rig) -> None:
    """Let the topic's retention remove all records, when another group has had them."""
    rig.wait("the effects of one group", lambda: max(rig.counts().reservations, rig.counts().notifications) == ORDERS)
    remove_records(rig.settings)


@dataclass(frozen=True)
class Mutation:
    """What is changed, who plays, what is done meanwhile, and which checks must fail: `check`, and what follows."""

    check: str
    what: str
    changes: tuple[str, ...] = ()
    roles: tuple[str, ...] = ("order",)
    also: tuple[str, ...] = ()
    late_s: float = _NEVER_S
    during: Callable[[Rig], None] = _nothing
    quick: bool = False  # also played by the test suite

    @property
    def name(self) -> str:
        """Its name: the changes of the program, else what is done to the servers, if anything."""
        return " ".join(self.changes) or (self.what if self.check else "nothing")


def _of_a_group(group: str) -> tuple[Mutation, ...]:
    roles = ("order", group)
    first = group == GROUPS[0]
    return (
        Mutation(
            f"{group}-missing",
            "a consumer never gets a batch into the database",
            (f"consumer_stuck:{group}",),
            ("order", *GROUPS),
            late_s=_LATE_S,
        ),
        Mutation(
            f"{group}-removed",
            "the topic loses what the group has not read",
            (f"consumer_stuck:{group}",),
            ("order", *GROUPS),
            during=_remove_what_others_have_read,
            quick=first,
        ),
        Mutation(
            f"{group}-doubled",
            "deduplication is off, and everything is published again",
            (f"deduplication_off:{group}",),
            roles,
            during=_publish_again,
            quick=True,
        ),
        Mutation(
            f"{group}-orphans",
            "each effect is written once more, of no order",
            (f"effect_invented:{group}",),
            roles,
        ),
        Mutation(
            f"{group}-dedup",
            "events are remembered as done whose effect is not written",
            (f"effect_forgotten:{group}",),
            roles,
            (f"{group}-missing",),
            quick=first,
        ),
        Mutation(
            f"{group}-dedup",
            "effects are written without a dedup row",
            (f"no_dedup_row:{group}",),
            roles,
            (f"{group}-offsets",),
        ),
        Mutation(
            f"{group}-state",
            "an order.cancelled is taken, and changes nothing",
            (f"cancel_forgotten:{group}",),
            roles,
            during=_cancel,
            quick=first,
        ),
        Mutation(
            f"{group}-state",
            "each effect is the one of a cancelled order",
            (f"cancel_invented:{group}",),
            roles,
        ),
        Mutation(
            f"{group}-sequence",
            "the events of a key are taken with the newest first",
            (f"taken_backwards:{group}",),
            roles,
            during=_cancel,
        ),
        Mutation(
            f"{group}-offsets",
            "offsets are committed of batches that were not written",
            (f"batch_dropped:{group}",),
            roles,
            (f"{group}-missing",),
            quick=first,
        ),
        Mutation(
            f"{group}-overtaken",
            "an event overtakes a parked one of its key",
            (f"parked_overtaken:{group}",),
            roles,
            during=_cancel,
        ),
        Mutation(
            f"{group}-offsets",
            "what can't be read gets no dead letter",
            (f"letter_forgotten:{group}",),
            roles,
            during=_send_rubbish,
        ),
        Mutation(
            "dead-letters",
            f"{group} writes other dead letters than died",
            (f"letter_altered:{group}",),
            roles,
            during=_send_rubbish,
        ),
    )


MUTATIONS = (
    Mutation("event-per-order", "each order gets two outbox rows", ("events_twice",), also=("numbered",)),
    Mutation("event-per-order", "orders are cancelled without an event", during=_cancel_unsaid),
    Mutation("event-per-order", "each cancel has two events", during=_cancel_twice),
    Mutation("numbered", "an order's first event has the number 2", ("misnumbered",)),
    Mutation("order-per-event", "an event of an order that was never made", ("event_without_order",)),
    Mutation(
        "order-per-event",
        "postgres forgets an order",
        roles=("order", *GROUPS),
        also=("inventory-orphans", "notifications-orphans"),
        during=_forget_an_order,
    ),
    Mutation(
        "unpublished",
        "the publisher sleeps",
        ("publisher_sleeps",),
        also=("inventory-missing", "notifications-missing"),
        late_s=_LATE_S,
    ),
    Mutation("lost", "rows are marked that were not sent", ("marked_unsent",), quick=True),
    Mutation("strangers", "records are sent of rows that are rolled back", ("sent_uncommitted",)),
    Mutation("strangers", "records have the event id of another event", ("another_event",), also=("lost",)),
    Mutation("wrong-key", "the key is another than the row's aggregate", ("another_key",)),
    Mutation("wrong-headers", "the program's own headers have another tenant", ("another_tenant",), quick=True),
    Mutation("wrong-headers", "the program's own headers are in another order", ("headers_swapped",)),
    Mutation("wrong-headers", "the program's own headers have another trace", ("trace_forgotten",)),
    Mutation("wrong-headers", "the program's own headers name another node", ("another_node",)),
    Mutation("wrong-payload", "the value is not the row's payload", ("another_payload",)),
    Mutation("unlike-order", "the order has another amount than its event", ("another_amount",)),
    Mutation("split-keys", "records are sent to a second partition too", ("sent_elsewhere_too",), quick=True),
    Mutation(
        "out-of-order",
        "a batch is sent with its last row first",
        ("events_twice", "sent_backwards"),
        also=("event-per-order", "numbered"),
    ),
    Mutation(
        "out-of-order",
        "a cancel is sent before what it cancels",
        ("publisher_waits", "sent_backwards"),
        during=_cancel,
        quick=True,
    ),
    *(mutation for group in GROUPS for mutation in _of_a_group(group)),
)
CONTROL = Mutation("", "nothing is changed", roles=("order", *GROUPS), late_s=0.0, during=_publish_again)
