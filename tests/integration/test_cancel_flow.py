"""A cancelled order's two events on their way: in order in the topic, and merged in each effect, however they come."""

import dataclasses
import threading
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from brewctl import overview
from brewctl.delivery import events
from brewctl.delivery.broker import Record
from brewctl.delivery.database import Pool
from brewctl.delivery.inbox.inbox import Inbox
from brewctl.lab.play.nodes import Nodes
from brewctl.proto.orders_pb2 import OrderCancelled, OrderCreated
from brewctl.roles import inventory, notifications
from tests.conftest import Rig
from tests.integration.grpc_tools import Service, dialled
from tests.integration.reading import read_topic

OK = grpc.StatusCode.OK
BOTH = ["order.created", "order.cancelled"]


# Effects


class Told:
    """The two events of one order, as records."""

    def __init__(self, first_id: int, *, numbered: bool) -> None:
        self.order_id = str(uuid.uuid4())
        created = OrderCreated(order_id=self.order_id, tenant_id="brew", trace_id="0" * 32)
        cancelled = OrderCancelled(order_id=self.order_id, tenant_id="brew", trace_id="1" * 32)
        self._numbered = numbered
        self.created = self._record(first_id, events.ORDER_CREATED, created.SerializeToString(), 1)
        self.cancelled = self._record(first_id + 1, events.ORDER_CANCELLED, cancelled.SerializeToString(), 2)

    def again(self, record: Record, outbox_id: int) -> Record:
        """The same event by another producer, who gives it another outbox id."""
        headers = [(name, str(outbox_id).encode() if name == "outbox-id" else value) for name, value in record.headers]
        headers = [(name, value) for name, value in headers if name != "event-id"]
        return record._replace(headers=headers, offset=outbox_id)

    def _record(self, outbox_id: int, kind: str, payload: bytes, seq: int) -> Record:
        key = events.aggregate_id(self.order_id)
        headers = events.headers_for(outbox_id, key, kind, node="order-1", tenant_id="brew", trace_id="0" * 32)
        if self._numbered:
            headers += [("event-id", str(uuid.uuid4()).encode()), ("aggregate-seq", str(seq).encode())]
        return Record("topic", key.encode(), payload, headers, 0, outbox_id)


def effects(rig: Rig, order_id: str) -> tuple[object, ...]:
    """Whether it is reserved, released, told as created or cancelled; None where there is no row."""
    ((released, state, told),) = rig.connection.execute(
        "SELECT (SELECT released_at IS NOT NULL FROM inventory_reservations WHERE order_id = %(id)s),"
        " (SELECT state FROM notifications_log WHERE order_id = %(id)s),"
        " (SELECT cancelled_at IS NOT NULL FROM notifications_log WHERE order_id = %(id)s)",
        {"id": order_id},
    ).fetchall()
    return released, state, told


RESERVED = (False, "created", False)
RELEASED = (True, "cancelled", True)


def handle(rig: Rig, pool: Pool, *batches: Sequence[Record]) -> None:
    for downstream in (inventory.DOWNSTREAM, notifications.DOWNSTREAM):
        inbox = Inbox(rig.settings, pool, downstream, node=f"{downstream.group}-1")
        for batch in batches:
            inbox.handle(list(batch))


@pytest.mark.parametrize("numbered", [True, False], ids=["numbered", "of another producer"])
def test_a_cancelled_order_is_released_and_told(rig: Rig, pool: Pool, numbered: bool) -> None:
    together, apart, alone = (Told(first, numbered=numbered) for first in (1, 11, 21))
    handle(rig, pool, [together.created, together.cancelled])
    handle(rig, pool, [apart.created])
    assert effects(rig, apart.order_id) == RESERVED
    handle(rig, pool, [apart.cancelled], [alone.cancelled])
    assert [effects(rig, each.order_id) for each in (together, apart, alone)] == [RELEASED] * 3


@pytest.mark.parametrize("numbered", [True, False], ids=["numbered", "of another producer"])
def test_a_late_repeat_changes_nothing(rig: Rig, pool: Pool, numbered: bool) -> None:
    told, swapped = Told(1, numbered=numbered), Told(11, numbered=numbered)
    handle(rig, pool, [told.created, told.cancelled], [swapped.cancelled])
    released = "SELECT order_id, node_id, created_at, seq, released_at FROM inventory_reservations ORDER BY order_id"
    before = rig.connection.execute(released).fetchall()
    repeats = [told.created, told.again(told.created, 31), swapped.created, told.again(told.cancelled, 32)]
    handle(rig, pool, *([late] for late in repeats), repeats[:2])
    assert rig.connection.execute(released).fetchall() == before
    assert effects(rig, told.order_id) == effects(rig, swapped.order_id) == RELEASED


def test_a_cancel_that_is_numbered_as_the_first_event_is_one_all_the_same(rig: Rig, pool: Pool) -> None:
    """Of an order whose first outbox row is gone: somebody deletes what is published."""
    told = Told(1, numbered=True)
    headers = [(name, b"1" if name == "aggregate-seq" else value) for name, value in told.cancelled.headers]
    handle(rig, pool, [told.created], [told.cancelled._replace(headers=headers)])
    assert effects(rig, told.order_id) == RELEASED


# The topic


def cancel(service: Service, order_id: str) -> grpc.StatusCode:
    return service.cancel(order_id, "changed my mind").code


def create(service: Service) -> str:
    return str(service.create().response.order_id)


def kinds_by_key(rig: Rig) -> dict[str, list[str]]:
    """The event types of each key in the topic's order, repeats and all."""
    found: dict[str, list[str]] = {}
    for record in read_topic(rig.settings):
        found.setdefault((record.key or b"").decode(), []).append(dict(record.headers)["event-type"].decode())
    return found


def finished(rig: Rig, orders: int) -> bool:
    return rig.counts() == overview.Counts(orders, 0, orders, orders) and not overview.unfinished(rig.databases)


def test_the_story_with_some_cancelled(rig: Rig) -> None:
    """Two publishers, cancels at once and later: each key has its events in order, each effect is the last state."""
    (_, one), (_, other) = rig.serve("order-1"), rig.serve("order-2")
    with dialled(rig, one) as first, dialled(rig, other) as second, ThreadPoolExecutor(8) as callers:

        def play(number: int) -> tuple[str, bool]:
            order_id = create((first, second)[number % 2])
            if number % 4 == 0:  # at once, by the other node: before its order.created is published, or after
                assert cancel((second, first)[number % 2], order_id) is OK
            return order_id, number % 4 == 0

        made = list(callers.map(play, range(120)))
        later = [order_id for number, (order_id, _) in enumerate(made) if number % 4 == 1]
        assert set(callers.map(lambda order_id: cancel(first, order_id), later)) == {OK}
    rig.start("inventory-1", "consume", "inventory")
    rig.start("notification-1", "consume", "notifications")
    rig.wait("every effect", lambda: finished(rig, 120))
    cancelled = {order_id for order_id, at_once in made if at_once} | set(later)
    assert kinds_by_key(rig) == {
        f"order-{order_id}": BOTH if order_id in cancelled else BOTH[:1] for order_id, _ in made
    }
    for order_id, _ in made:
        assert effects(rig, order_id) == (RELEASED if order_id in cancelled else RESERVED)
    headers = [dict(record.headers) for record in read_topic(rig.settings)]
    assert {each["aggregate-seq"] for each in headers if each["event-type"] == b"order.cancelled"} == {b"2"}


def test_a_cancel_before_its_order_was_published_stands_behind_it(rig: Rig, tmp_path: Path) -> None:
    """While Kafka is away nothing is published, and both calls are answered; two nodes then publish both events."""
    unplugged = dataclasses.replace(rig.settings, brokers=("127.0.0.1:1",))
    with Nodes(unplugged, logs=tmp_path / "unplugged", on_line=lambda _line: None) as nodes:
        node = nodes.start("order-1", "serve", "order", "--port", "0")
        node.wait_ready(timeout_s=60)
        with dialled(rig, node.address) as service:
            ids = [create(service) for _ in range(30)]
            assert {cancel(service, order_id) for order_id in ids} == {OK}
        node.kill()
    assert rig.counts().outbox_unpublished == 60
    rig.serve("order-2")
    rig.serve("order-3")
    rig.wait("both events of each", lambda: rig.counts().outbox_unpublished == 0)
    assert kinds_by_key(rig) == {f"order-{order_id}": BOTH for order_id in ids}


def test_a_killed_node_leaves_each_cancel_done_or_not(rig: Rig) -> None:
    """kill -9 in the middle of cancels: what was acknowledged is so, and no order has half of a cancel."""
    victim, address = rig.serve("order-1")
    acknowledged: list[str] = []
    with dialled(rig, address) as service, ThreadPoolExecutor(8) as callers:
        ids = list(callers.map(lambda _: create(service), range(200)))
        some = threading.Event()

        def play(order_id: str) -> None:
            if cancel(service, order_id) is OK:
                acknowledged.append(order_id)
                if len(acknowledged) > 20:
                    some.set()

        calls = [callers.submit(play, order_id) for order_id in ids]
        assert some.wait(60)
        victim.kill()
        for call in calls:
            call.result()
    assert len(acknowledged) < len(ids), "it was killed in the middle"
    ((halves,),) = rig.connection.execute(
        "SELECT count(*) FROM orders o WHERE (status = 'ORDER_STATUS_CANCELLED') <> (cancelled_at IS NOT NULL)"
        " OR (SELECT count(*) FROM outbox WHERE aggregate_id = 'order-' || o.id AND event_type = 'order.cancelled')"
        " <> (cancelled_at IS NOT NULL)::int"
    ).fetchall()
    assert halves == 0
    _, address = rig.serve("order-2")
    with dialled(rig, address) as service:
        for order_id in acknowledged:
            assert service.get(order_id).response.order.HasField("cancelled_at")
        assert {cancel(service, order_id) for order_id in ids} == {OK}
    rig.start("inventory-1", "consume", "inventory")
    rig.start("notification-1", "consume", "notifications")
    rig.wait("every effect", lambda: finished(rig, 200))
    for kinds in kinds_by_key(rig).values():
        # A batch that was published and not marked is published again.
        assert list(dict.fromkeys(kinds)) == BOTH
