"""The primary is lost and its standby promoted, by real streaming replication, while orders flow."""

import contextlib
import re
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import ANY

import grpc
import pytest

from brewctl.client import OrderClient
from brewctl.delivery import database
from brewctl.delivery.downstream import Downstream, Reject
from brewctl.delivery.inbox.inbox import Inbox
from brewctl.lifecycle import wait_until
from brewctl.proto import orders_pb2_grpc
from brewctl.proto.orders_pb2 import CancelRequest
from brewctl.roles import inventory
from tests.conftest import limited
from tests.integration.failover_tools import EFFECTS, LOGGED_AHEAD, WAIT_S, Flow, broken, clients, open_flow, outbox_ids
from tests.integration.grpc_tools import order
from tests.integration.test_event_identity import record


@pytest.fixture
def flow(servers: dict[str, str], tmp_path: Path) -> Iterator[Flow]:
    with open_flow(servers, tmp_path / "logs") as flow:
        yield flow


def test_no_acknowledged_order_is_lost_with_synchronous_replication(flow: Flow) -> None:
    pair = flow.pair
    pair.replicate_synchronously()
    roles = [flow.start(f"order-{number}", "serve", "order", "--port", "0") for number in (1, 2)]
    roles += [flow.start("publisher-1", "publish"), *flow.start_consumers()]
    with clients(flow.addresses, count=4) as acknowledged:
        wait_until("orders", lambda: len(acknowledged) >= 100, timeout_s=WAIT_S)
        pair.fail_over()
        before = len(acknowledged)
        wait_until("orders on the new primary", lambda: len(acknowledged) >= before + 100, timeout_s=WAIT_S)
    flow.settle(pair.standby, acknowledged)
    assert all(node.alive for node in roles)
    code, said = flow.brewctl("verify", "--wait", "60")
    assert code == 0, said
    orders = pair.standby.ask("SELECT count(*) FROM orders")
    for table in EFFECTS:
        assert pair.standby.ask(f"SELECT count(*) FROM {table}") == orders


def test_a_retry_acknowledges_no_order_that_the_standby_does_not_have(flow: Flow) -> None:
    """A commit that waits for the standby is given up, and is there all the same, on the primary alone."""
    flow.pair.replicate_synchronously()
    node = flow.start("order-1", "serve", "order", "--port", "0", "--no-publisher")
    flow.pair.cut()
    request = order(idempotency_key="once")
    with grpc.insecure_channel(node.address) as channel:
        create = orders_pb2_grpc.OrderServiceStub(channel).Create  # type: ignore[no-untyped-call]

        def is_there() -> bool:
            return flow.pair.primary.ask("SELECT count(*) FROM orders") == 1

        for _ in range(2):  # the second one finds it
            with pytest.raises(grpc.RpcError):
                create(request, timeout=10)
            wait_until("an order on the primary alone", is_there, timeout_s=WAIT_S)
        flow.pair.fail_over()
    assert flow.pair.standby.ask("SELECT count(*) FROM orders") == 0
    with OrderClient([node.address], timeout_s=WAIT_S) as client:
        made = client.create("c1", amount_cents=450, currency="EUR", idempotency_key="once")
    assert flow.pair.standby.ask("SELECT id::text FROM orders") == made


def test_a_second_cancel_acknowledges_none_that_the_standby_does_not_have(flow: Flow) -> None:
    flow.pair.replicate_synchronously()
    node = flow.start("order-1", "serve", "order", "--port", "0", "--no-publisher")
    (order_id,) = flow.create(1)
    flow.pair.cut()
    with grpc.insecure_channel(node.address) as channel:
        cancel = orders_pb2_grpc.OrderServiceStub(channel).Cancel  # type: ignore[no-untyped-call]

        def is_cancelled() -> bool:
            return flow.pair.primary.ask("SELECT status FROM orders") == "ORDER_STATUS_CANCELLED"

        for _ in range(2):
            with pytest.raises(grpc.RpcError):
                cancel(CancelRequest(order_id=order_id), timeout=15)
            wait_until("a cancel on the primary alone", is_cancelled, timeout_s=WAIT_S)
        flow.pair.fail_over()
    assert flow.pair.standby.ask("SELECT status FROM orders") == "ORDER_STATUS_NEW"
    with OrderClient([node.address], timeout_s=WAIT_S) as client:
        assert client.cancel(order_id) == "ORDER_STATUS_CANCELLED"
    assert flow.pair.standby.ask("SELECT status FROM orders") == "ORDER_STATUS_CANCELLED"


def test_what_asynchronous_replication_loses_is_said_and_its_ids_are_used_again(flow: Flow) -> None:
    pair = flow.pair
    flow.start("order-1", "serve", "order", "--port", "0")
    kept = flow.create(5)
    consumers = flow.start_consumers()
    flow.settle(pair.primary, kept)
    for node in consumers:
        node.process.send_signal(signal.SIGTERM)
        assert node.ended(within_s=WAIT_S) == 0
    without_effects = flow.create(3)
    wait_until(
        "published rows",
        lambda: pair.primary.ask("SELECT count(*) FROM outbox WHERE published_at IS NULL") == 0,
        timeout_s=WAIT_S,
    )
    flow.replicate()
    pair.cut()
    flow.start_consumers()
    lost = flow.create(LOGGED_AHEAD + 10)
    flow.settle(pair.primary, kept | without_effects | lost)
    lost_ids = outbox_ids(pair.primary) - outbox_ids(pair.standby)
    assert len(lost_ids) == len(lost)

    pair.fail_over()
    new = flow.create(LOGGED_AHEAD + 10)
    assert outbox_ids(pair.standby) & lost_ids, "no id was used again"
    flow.settle(pair.standby, kept | new)

    # What Kafka has and PostgreSQL lost is named, record by record; so is an order whose effects were lost, while its
    # groups have passed its record.
    assert broken(flow) == {
        "strangers": len(lost),
        **{f"{group}-missing": len(without_effects) for group in ("inventory", "notifications")},
        **{f"{group}-offsets": ANY for group in ("inventory", "notifications")},
    }
    code, said = flow.brewctl("verify")
    assert code == 1
    assert re.search(r"outbox \d+ at \d@\d+ is (not in the outbox|another event)", said)
    assert "has no inventory effect" in said
    assert flow.brewctl("outbox", "republish", "--missing", "--yes")[0] == 0
    flow.settle(pair.standby, without_effects)
    assert broken(flow) == {
        "strangers": len(lost),
        **{f"{group}-offsets": ANY for group in ("inventory", "notifications")},
    }
    for table in EFFECTS:
        assert pair.standby.ask(f"SELECT count(*) FROM {table}") == len(kept | without_effects | new)


def refuse(_event: object, _tx: object) -> None:
    raise Reject("never")


@pytest.mark.parametrize(
    ("downstream", "table"),
    [
        (inventory.DOWNSTREAM, "inventory_reservations"),
        (Downstream("inventory", handler=refuse, events=("order.created",)), "parked_events"),
    ],
    ids=["effect", "parked"],
)
def test_a_consumer_passes_no_event_that_the_standby_does_not_know_of(
    flow: Flow, downstream: Downstream, table: str
) -> None:
    """Its transaction is given up as it waits for the standby, and is found done by the next try."""
    settings = limited(flow.settings, database_connect_s=2, database_statement_s=3, database_answer_s=3.5)
    event = record(1, event_id=str(uuid.uuid4()))
    count = f"SELECT count(*) FROM {table}"
    flow.pair.replicate_synchronously()
    with database.open_pool(settings, name="inventory-1", size=1) as pool:
        inbox = Inbox(settings, pool, downstream, node="inventory-1")
        flow.pair.cut()
        for _ in range(2):
            with pytest.raises(database.NoAnswerError):
                inbox.handle([event])
            wait_until("a row on the primary alone", lambda: flow.pair.primary.ask(count) == 1, timeout_s=WAIT_S)
        flow.pair.fail_over()
        with contextlib.suppress(*database.UNAVAILABLE):  # of the connection that the kill ended
            inbox.handle([event])
        inbox.handle([event])
    assert flow.pair.standby.ask(count) == 1
