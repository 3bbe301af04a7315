"""`Cancel`: the change and its event are one commit, once; every bad input, and a database that does not answer."""

import dataclasses
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC

import grpc
import psycopg
import pytest

from brewctl.proto.orders_pb2 import (
    ORDER_STATUS_CANCELLED,
    ORDER_STATUS_NEW,
    ORDER_STATUS_UNSPECIFIED,
    OrderCancelled,
    OrderCreated,
)
from tests.conftest import Rig, limited, open_rig
from tests.integration.grpc_tools import (
    BROKEN,
    PARENT,
    RETRY_AFTER_S,
    TRACE,
    Service,
    dialled,
    failing,
    locked_orders,
)
from tests.integration.held_node import by_way_of, held_node
from tests.pgbouncer import pooled
from tests.tcp_proxy import proxied

OK = grpc.StatusCode.OK
INVALID = grpc.StatusCode.INVALID_ARGUMENT
NEVER = (None, -0.001)  # gRPC's word for: don't retry


@pytest.fixture(scope="module")
def rig(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One for all tests here: each has orders of its own."""
    with open_rig(servers, tmp_path_factory.mktemp("cancel")) as rig:
        yield rig


@pytest.fixture(scope="module")
def service(rig: Rig) -> Iterator[Service]:
    """Without a publisher, which would write the rows again whose transactions are compared here."""
    node = rig.start("order-1", "serve", "order", "--port", "0", "--no-publisher")
    with dialled(rig, node.address) as service:
        yield service


def created(service: Service, **given: object) -> str:
    made = service.create(**given)  # type: ignore[arg-type]
    assert made.code is OK, made
    return str(made.response.order_id)


def events_of(rig: Rig, order_id: str) -> list[tuple[str, int]]:
    found = rig.connection.execute(
        "SELECT event_type, aggregate_seq FROM outbox WHERE aggregate_id = %s ORDER BY id", (f"order-{order_id}",)
    )
    return [(str(kind), int(str(seq))) for kind, seq in found]


def state_of(rig: Rig, order_id: str) -> tuple[str, bool]:
    row = rig.connection.execute("SELECT status, cancelled_at IS NOT NULL FROM orders WHERE id = %s", (order_id,))
    ((status, cancelled),) = row.fetchall()
    return str(status), bool(cancelled)


NEW = ("ORDER_STATUS_NEW", False)
CANCELLED = ("ORDER_STATUS_CANCELLED", True)
ONE = [("order.created", 1)]
BOTH = [("order.created", 1), ("order.cancelled", 2)]


# What it does


def test_a_cancel_is_a_change_and_an_event_in_one_commit(rig: Rig, service: Service) -> None:
    order_id = created(service, metadata=(("x-tenant-id", "tea"),))
    parent = f"00-{TRACE}-{PARENT}-01"
    done = service.cancel(order_id, "out of beans ☕", metadata=(("traceparent", parent), ("x-tenant-id", "other")))
    assert (done.code, done.response.order_id, done.response.status) == (OK, order_id, ORDER_STATUS_CANCELLED)
    assert (state_of(rig, order_id), events_of(rig, order_id)) == (CANCELLED, BOTH)
    order = service.get(order_id).response.order
    assert order.status == ORDER_STATUS_CANCELLED
    ((event_id, tenant, trace, kept, topic, payload, cancelled_at, same),) = rig.connection.execute(
        "SELECT x.event_id, x.tenant_id, x.trace_id, x.traceparent, x.topic, x.payload, o.cancelled_at,"
        " x.xmin = o.xmin FROM outbox x JOIN orders o ON x.aggregate_id = 'order-' || o.id"
        " WHERE o.id = %s AND x.aggregate_seq = 2",
        (order_id,),
    ).fetchall()
    assert isinstance(payload, bytes)
    event = OrderCancelled.FromString(payload)
    assert (event.order_id, event.reason, event.trace_id, event.tenant_id) == (
        order_id,
        "out of beans ☕",
        TRACE,
        "tea",
    )
    assert (tenant, trace, kept, topic) == ("tea", TRACE, parent, rig.settings.topic)
    assert event_id is not None
    assert same, "the change and its event are of one transaction"
    assert event.cancelled_at.ToDatetime(tzinfo=UTC) == order.cancelled_at.ToDatetime(tzinfo=UTC) == cancelled_at


def test_no_cancel_is_written_while_an_order_node_of_the_version_before_would_publish_it(
    rig: Rig, service: Service
) -> None:
    order_id = created(service)
    rig.connection.execute(
        "INSERT INTO nodes (node_id, role, host, pid, address, started_at, seen_at)"
        " SELECT 'older-1', 'order', 'h', 1, '', seen, seen FROM clock_timestamp() AS seen"
    )
    refused = service.cancel(order_id)
    assert (refused.code, refused.details) == (
        grpc.StatusCode.UNAVAILABLE,
        "older-1 of an older version does not know cancels: retry once it has ended",
    )
    assert (state_of(rig, order_id), events_of(rig, order_id)) == (NEW, ONE)
    for ended in ("stopped_at = seen_at", "stopped_at = NULL, seen_at = seen_at - interval '2 minutes'"):
        rig.connection.execute(f"UPDATE nodes SET {ended} WHERE node_id = 'older-1'".encode())
        assert service.cancel(order_id).code is OK
        order_id = created(service)
    rig.connection.execute("DELETE FROM nodes WHERE node_id = 'older-1'")


def test_an_order_that_is_not_cancelled_has_no_such_time(rig: Rig, service: Service) -> None:
    order_id = created(service)
    order = service.get(order_id).response.order
    assert (order.status, order.HasField("cancelled_at")) == (ORDER_STATUS_NEW, False)
    assert events_of(rig, order_id) == ONE


def test_a_second_cancel_answers_the_same_and_writes_nothing(rig: Rig, service: Service) -> None:
    order_id = created(service)
    assert service.cancel(order_id, "first").code is OK
    first = service.get(order_id).response.order
    again = service.cancel(order_id, "second")
    assert (again.code, again.response.order_id, again.response.status) == (OK, order_id, ORDER_STATUS_CANCELLED)
    assert events_of(rig, order_id) == BOTH
    assert service.get(order_id).response.order == first


def test_an_id_in_another_spelling_is_the_same_order(rig: Rig, service: Service) -> None:
    order_id = created(service)
    done = service.cancel(order_id.upper())
    assert (done.code, done.response.order_id) == (OK, order_id)
    assert events_of(rig, order_id) == BOTH


def test_a_trace_is_made_where_the_caller_brings_none(rig: Rig, service: Service) -> None:
    for metadata in ((), (("traceparent", "nonsense"),)):
        order_id = created(service)
        assert service.cancel(order_id, metadata=metadata).code is OK
        ((trace, parent),) = rig.connection.execute(
            "SELECT trace_id, traceparent FROM outbox WHERE aggregate_id = %s AND aggregate_seq = 2",
            (f"order-{order_id}",),
        ).fetchall()
        assert (len(str(trace)), parent) == (32, None)


def test_create_with_the_key_of_a_cancelled_order_returns_it_as_it_is_now(rig: Rig, service: Service) -> None:
    key = str(uuid.uuid4())
    order_id = created(service, idempotency_key=key)
    assert service.cancel(order_id).code is OK
    again = service.create(idempotency_key=key)
    assert (again.code, again.response.order_id, again.response.status) == (OK, order_id, ORDER_STATUS_CANCELLED)
    assert service.create(idempotency_key=key, amount_cents=1).code is grpc.StatusCode.ALREADY_EXISTS
    assert events_of(rig, order_id) == BOTH


def test_the_publisher_is_told_of_each_event_once_it_is_committed(rig: Rig) -> None:
    with held_node(rig) as node:
        node.writer.begin()
        order_id = created(node.client)
        assert node.notified == []
        assert node.client.cancel(order_id).code is OK
        rig.wait("a word to the publisher", lambda: node.notified == [None])
        assert node.client.cancel(order_id).code is OK
        assert node.client.cancel(str(uuid.uuid4())).code is grpc.StatusCode.NOT_FOUND
    assert node.notified == [None]


# Bad input


_NOBODYS = "0199c2f4-1b2c-7000-8000-0123456789ab"


@pytest.mark.parametrize("order_id", ["", "nonsense", _NOBODYS, f"{{{_NOBODYS}}}", "a\0b"])
def test_an_order_that_is_not_there(service: Service, order_id: str) -> None:
    failed = service.cancel(order_id)
    assert failed.code is grpc.StatusCode.NOT_FOUND
    assert failed.details == f"no order {order_id!r}"


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("x" * 501, "reason must have 0 to 500 characters, not 501"),
        ("x" * 10_000, "reason must have 0 to 500 characters, not 10000"),
        ("a\0b", "reason must not contain control characters"),
        ("a\nb", "reason must not contain control characters"),
        ("\0" * 501, "reason must have 0 to 500 characters, not 501; reason must not contain control characters"),
        ("x" * 100_000, "bytes; the limit is 65536"),
    ],
)
def test_a_reason_that_breaks_the_rules(rig: Rig, service: Service, reason: str, said: str) -> None:
    order_id = created(service)
    failed = service.cancel(order_id, reason)
    assert failed.code is INVALID
    assert said in failed.details
    assert (state_of(rig, order_id), events_of(rig, order_id)) == (NEW, ONE)


def test_the_longest_reason_is_taken(rig: Rig, service: Service) -> None:
    order_id = created(service)
    assert service.cancel(order_id, "☕" * 500).code is OK
    assert events_of(rig, order_id) == BOTH


def test_a_status_of_a_later_version_is_unspecified_and_is_not_overwritten(rig: Rig, service: Service) -> None:
    order_id = created(service)
    rig.connection.execute("UPDATE orders SET status = 'ORDER_STATUS_SHIPPED' WHERE id = %s", (order_id,))
    assert service.get(order_id).response.order.status == ORDER_STATUS_UNSPECIFIED
    failed = service.cancel(order_id)
    assert (failed.code, failed.retry_after_s) == (grpc.StatusCode.FAILED_PRECONDITION, NEVER)
    assert "ORDER_STATUS_SHIPPED" in failed.details
    assert (state_of(rig, order_id), events_of(rig, order_id)) == (("ORDER_STATUS_SHIPPED", False), ONE)


# Two at once


def test_two_replicas_at_once_add_one_event(rig: Rig, service: Service) -> None:
    _, address = rig.serve("order-2")
    with dialled(rig, address) as other, ThreadPoolExecutor(8) as callers:
        for _ in range(10):
            order_id = created(service)
            calls = [callers.submit(each.cancel, order_id) for each in (service, other) * 4]
            assert {call.result().code for call in calls} == {OK}
            assert events_of(rig, order_id) == BOTH


def test_nobody_is_cancelled_for_a_caller_who_has_gone(rig: Rig, service: Service) -> None:
    order_id = created(service)
    with locked_orders(rig):
        late = service.cancel(order_id, timeout=0.5)
        assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert service.cancel(created(service)).code is OK
    assert (state_of(rig, order_id), events_of(rig, order_id)) == (NEW, ONE)


# A database that fails


def test_a_failing_event_leaves_the_order_as_it_was(rig: Rig, service: Service) -> None:
    order_id = created(service)
    with failing(rig, BROKEN, at_commit=False):
        failed = service.cancel(order_id)
        assert (failed.code, failed.details) == (grpc.StatusCode.INTERNAL, "the commit failed: retry")
    assert (state_of(rig, order_id), events_of(rig, order_id)) == (NEW, ONE)


@pytest.mark.parametrize("action", [BROKEN, "PERFORM pg_terminate_backend(pg_backend_pid())"], ids=["fails", "is lost"])
def test_a_failed_commit_is_internal_and_a_retry_settles_it(rig: Rig, service: Service, action: str) -> None:
    order_id = created(service)
    with failing(rig, action, at_commit=True):
        failed = service.cancel(order_id)
        assert (failed.code, failed.details) == (grpc.StatusCode.INTERNAL, "the commit failed: retry")
        assert failed.retry_after_s == RETRY_AFTER_S
    assert (state_of(rig, order_id), events_of(rig, order_id)) == (NEW, ONE)
    assert service.cancel(order_id).code is OK
    assert events_of(rig, order_id) == BOTH


def test_what_a_trigger_refuses_is_refused_for_good(rig: Rig, service: Service) -> None:
    order_id = created(service)
    with failing(rig, "RAISE EXCEPTION 'not on a Friday'", at_commit=False):
        failed = service.cancel(order_id)
    assert (failed.code, failed.retry_after_s) == (grpc.StatusCode.FAILED_PRECONDITION, NEVER)
    assert "not on a Friday" in failed.details
    assert (state_of(rig, order_id), events_of(rig, order_id)) == (NEW, ONE)


def test_a_database_that_is_away(rig: Rig) -> None:
    where = psycopg.conninfo.conninfo_to_dict(rig.settings.database_url)
    with proxied(str(where["host"]), int(str(where["port"]))) as proxy:
        settings = limited(by_way_of(rig.settings, proxy.port), create_s=1.0, database_wait_s=1.0)
        with held_node(rig, settings) as node:
            node.writer.begin()
            order_id = created(node.client)
            proxy.swallowing.set()  # the question arrives, the answer does not: what became of it is unknown or nothing
            failed = node.client.cancel(order_id)
            assert failed.code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL}
            assert failed.retry_after_s == RETRY_AFTER_S
            proxy.swallowing.clear()
            proxy.hang_up()
            rig.wait("an answer", lambda: node.client.cancel(order_id).code is OK)
    assert events_of(rig, order_id) == BOTH


def test_behind_a_pooler_of_transactions(rig: Rig) -> None:
    """One server session for all: what a cancel sets ends with it, and nobody has its transaction."""
    with pooled(rig.settings.database_url) as url:
        settings = dataclasses.replace(rig.settings, database_url=url)
        with held_node(rig, settings) as node, ThreadPoolExecutor(4) as callers:
            node.writer.begin()
            ids = [created(node.client) for _ in range(10)]
            assert {each.code for each in callers.map(node.client.cancel, ids * 2)} == {OK}

    for order_id in ids:
        assert events_of(rig, order_id) == BOTH


def test_the_created_event_says_what_it_said(rig: Rig, service: Service) -> None:
    """An event is never written again: a cancel adds one."""
    order_id = created(service)
    before = rig.connection.execute("SELECT payload FROM outbox WHERE aggregate_id = %s", (f"order-{order_id}",))
    ((payload,),) = before.fetchall()
    assert service.cancel(order_id).code is OK
    after = rig.connection.execute(
        "SELECT payload FROM outbox WHERE aggregate_id = %s AND aggregate_seq = 1", (f"order-{order_id}",)
    )
    assert after.fetchall() == [(payload,)]
    assert isinstance(payload, bytes)
    assert OrderCreated.FromString(payload).status == ORDER_STATUS_NEW
