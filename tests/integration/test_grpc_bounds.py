"""Deadlines, overload, a database that fails or goes: each wait ends; nothing is committed that nobody waits for."""

import uuid

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2

from brewctl.lifecycle import wait_until
from tests.conftest import Rig
from tests.integration.grpc_tools import (
    BROKEN,
    CONCURRENT_CALLS,
    RETRY_AFTER_S,
    SEVERAL,
    Service,
    answer,
    dialled,
    failing,
    knows_of,
    locked_orders,
    order,
    rows,
    rows_of,
    somebody,
    taken_key,
    wait_for_blocked,
)
from tests.integration.kafka_tools import finish, refused_connections

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

# Deadlines


def test_a_call_whose_deadline_passed_in_the_queue_writes_nothing(service: Service) -> None:
    node, address = service.rig.serve("order-queue")
    early, late = somebody(), somebody()
    with dialled(service.rig, address) as busy:
        with locked_orders(service.rig):
            first = [busy.stub.Create.future(order(customer_id=early)) for _ in range(SEVERAL)]
            wait_for_blocked(service.rig, 1)
            queued = [busy.stub.Create.future(order(customer_id=late), timeout=0.3) for _ in range(SEVERAL)]
            assert {call.exception().code() for call in queued} == {grpc.StatusCode.DEADLINE_EXCEEDED}
            knows_of(busy)
        assert all(call.result(30).order_id for call in first)
    # Its end says that no handler is left that could still write.
    assert finish(node) == 0
    assert rows_of(service.rig, early) == (SEVERAL, SEVERAL)
    assert rows_of(service.rig, late) == (0, 0)


@pytest.mark.parametrize("in_front_of", [locked_orders, taken_key])
def test_a_deadline_that_passes_at_a_lock_writes_nothing_when_the_lock_is_gone(
    service: Service, in_front_of: object
) -> None:
    customer, key = somebody(), str(uuid.uuid4())
    lock = locked_orders(service.rig) if in_front_of is locked_orders else taken_key(service.rig, key)
    with lock:
        # The statement is bounded in whole seconds: at 1.3 s it still waits, and gets its lock.
        late = service.create(customer_id=customer, idempotency_key=key, timeout=1.3)
        assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED
        knows_of(service)
    wait_until("an idle service", lambda: transactions(service.rig) == 0, timeout_s=10, every_s=0.02)
    assert rows_of(service.rig, customer) == (0, 0)
    assert service.create(customer_id=customer, idempotency_key=key).code is grpc.StatusCode.OK
    assert rows_of(service.rig, customer) == (1, 1)


def transactions(rig: Rig) -> int:
    """How many sessions are in a transaction."""
    ((count,),) = rig.connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL"
        " AND pid <> pg_backend_pid() AND application_name <> ''"
    ).fetchall()
    assert isinstance(count, int)
    return count


def test_a_handler_waits_at_a_lock_no_longer_than_its_caller(service: Service) -> None:
    with locked_orders(service.rig):
        assert service.create(timeout=0.5).code is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_for_blocked(service.rig, 0)


def test_a_create_waits_at_a_lock_no_longer_than_its_bound(service: Service) -> None:
    customer = somebody()
    with locked_orders(service.rig):
        refused = service.create(customer_id=customer, timeout=60)
    assert refused.code is grpc.StatusCode.UNAVAILABLE
    assert refused.retry_after_s == RETRY_AFTER_S
    assert rows_of(service.rig, customer) == (0, 0)


def test_a_backend_that_says_nothing_more_holds_no_handler_and_commits_nothing(rig: Rig) -> None:
    node, address = rig.serve()
    customer = somebody()
    with dialled(rig, address) as service:
        with locked_orders(rig):
            call = service.stub.Create.future(order(customer_id=customer), timeout=0.5)
            wait_for_blocked(rig, 1)
            (backend, port) = blocked_backend(rig)
            backend.suspend()
        try:
            # It has its lock, and does not know it. Whoever asked goes without an answer.
            assert call.exception().code() is grpc.StatusCode.DEADLINE_EXCEEDED
            process = psutil.Process(node.process.pid)
            wait_until(
                "a connection that is given up",
                lambda: all(not used.laddr or used.laddr.port != port for used in process.net_connections()),
                timeout_s=20,
            )
            assert service.create(customer_id="somebody else").code is grpc.StatusCode.OK
        finally:
            backend.resume()
        psutil.wait_procs([backend], timeout=20)
        assert not backend.is_running()
    assert rows_of(rig, customer) == (0, 0)


def blocked_backend(rig: Rig) -> tuple[psutil.Process, int]:
    """The process of the session that waits for a lock, and the port that it is connected from."""
    ((pid, port),) = rig.connection.execute(
        "SELECT pid, client_port FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ).fetchall()
    if not psutil.pid_exists(pid) or "postgres" not in psutil.Process(pid).name():
        pytest.skip("PostgreSQL runs elsewhere")
    return psutil.Process(pid), port


# Overload


def test_too_many_in_flight_are_turned_away_and_the_rest_are_served(service: Service) -> None:
    calls, customer = 300, somebody()
    with locked_orders(service.rig):
        gone = [service.stub.Create.future(order(customer_id="gone"), timeout=60) for _ in range(calls)]
        wait_until("calls turned away", lambda: refused(gone) == calls - CONCURRENT_CALLS, timeout_s=30, every_s=0.05)
        wait_for_blocked(service.rig, 1)
        # Every handler is blocked, and the queue is full.
        assert service.health("").response.status == SERVING
        turned_away = service.create()
        assert turned_away.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert turned_away.retry_after_s == RETRY_AFTER_S
        for call in gone:
            call.cancel()
        knows_of(service)
        # A batch that was sent before waits a moment at the lock; then nothing is tried any more.
        wait_for_blocked(service.rig, 0)
    wait_until("no call in hand", lambda: transactions(service.rig) == 0, timeout_s=20, every_s=0.02)
    # Those that went before their turn have left their places.
    with locked_orders(service.rig):
        futures = [service.stub.Create.future(order(customer_id=customer), timeout=60) for _ in range(calls)]
        away = calls - CONCURRENT_CALLS
        wait_until(f"{away} calls turned away", lambda: refused(futures) == away, timeout_s=30, every_s=0.05)
        wait_for_blocked(service.rig, 1)
    ended = [answer(lambda call=call: call.result(60)).code for call in futures]  # type: ignore[misc]
    assert ended.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == away
    assert ended.count(grpc.StatusCode.OK) == CONCURRENT_CALLS
    assert rows_of(service.rig, customer) == (CONCURRENT_CALLS, CONCURRENT_CALLS)
    assert rows_of(service.rig, "gone") == (0, 0)
    assert service.create().code is grpc.StatusCode.OK


def refused(futures: list[grpc.Future]) -> int:
    return sum(call.done() for call in futures)


# A database that goes


def test_while_the_database_is_away_every_call_is_answered_at_once(service: Service, servers: dict[str, str]) -> None:
    calls = 1000
    node, address = service.rig.serve("order-away")
    process = psutil.Process(node.process.pid)
    before = rows(service.rig)
    with dialled(service.rig, address) as away:
        assert away.health().response.status == SERVING
        with refused_connections(service.rig, servers, node.name):
            wait_until("an unhealthy service", lambda: away.health().response.status == NOT_SERVING, timeout_s=20)
            threads = process.num_threads()
            futures = [away.stub.Create.future(order(), timeout=60) for _ in range(calls)]
            ended = [answer(lambda call=call: call.result(60)) for call in futures]  # type: ignore[misc]
            assert {(each.code, each.details, each.retry_after_s) for each in ended} == {
                (grpc.StatusCode.UNAVAILABLE, "the database is away: retry", RETRY_AFTER_S)
            }
            assert away.get(str(uuid.uuid4())).code is grpc.StatusCode.UNAVAILABLE
            assert process.num_threads() <= threads + 2  # who answers meanwhile
            assert away.health("").response.status == SERVING  # the process is well
        wait_until("a healthy service", lambda: away.health().response.status == SERVING, timeout_s=20)
        assert away.create().code is grpc.StatusCode.OK
    assert finish(node) == 0
    assert rows(service.rig) == (before[0] + 1, before[1] + 1)  # type: ignore[operator]
    log = node.log.read_text()
    assert (log.count("event=database_away"), log.count("event=database_back")) == (1, 1), log


def test_lost_connections_alone_are_no_outage(service: Service) -> None:
    node, address = service.rig.serve("order-cut")
    with dialled(service.rig, address) as cut:
        assert cut.create().code is grpc.StatusCode.OK
        mine = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"

        def sessions() -> object:
            return (service.rig.connection.execute(f"SELECT count(*) {mine}", (node.name,)).fetchone() or (0,))[0]

        wait_until(
            "a session each of readers, writer, single tries, cancels, publisher, watch and presence",
            lambda: sessions() == 7,
            timeout_s=20,
        )
        service.rig.connection.execute(f"SELECT pg_terminate_backend(pid, 5000) {mine}", (node.name,))
        assert cut.create().code is grpc.StatusCode.OK
        assert cut.health().response.status == SERVING
    assert finish(node) == 0
    assert "event=database_away" not in node.log.read_text()


# A database that fails

END = "PERFORM pg_terminate_backend(pg_backend_pid())"


@pytest.mark.parametrize(
    ("action", "at_commit", "code"),
    [
        (BROKEN, True, grpc.StatusCode.INTERNAL),
        (BROKEN, False, grpc.StatusCode.INTERNAL),
        # The commit was sent, and nobody heard what became of it.
        (END, True, grpc.StatusCode.INTERNAL),
        (END, False, grpc.StatusCode.UNAVAILABLE),
        ("RAISE SQLSTATE '40001'", True, grpc.StatusCode.UNAVAILABLE),
        ("RAISE SQLSTATE '40P01'", False, grpc.StatusCode.UNAVAILABLE),
        ("RAISE SQLSTATE '25006'", False, grpc.StatusCode.UNAVAILABLE),
        ("RAISE SQLSTATE '53300'", False, grpc.StatusCode.UNAVAILABLE),
        ("RAISE SQLSTATE '53100'", False, grpc.StatusCode.UNAVAILABLE),  # the disk is full
    ],
)
def test_a_failure_leaves_neither_order_nor_event_and_asks_for_a_retry(
    service: Service, action: str, at_commit: bool, code: grpc.StatusCode
) -> None:
    customer, key = somebody(), str(uuid.uuid4())
    with failing(service.rig, action, at_commit=at_commit):
        failed = service.create(customer_id=customer, idempotency_key=key)
        assert failed.code is code, failed
        assert "retry" in failed.details
        assert failed.retry_after_s == RETRY_AFTER_S
        assert rows_of(service.rig, customer) == (0, 0)
    assert service.create(customer_id=customer, idempotency_key=key).code is grpc.StatusCode.OK
    assert rows_of(service.rig, customer) == (1, 1)


def test_a_missing_table_names_the_command_that_makes_it(rig: Rig) -> None:
    _, address = rig.serve()
    customer = somebody()
    with dialled(rig, address) as service:
        rig.connection.execute("DROP TABLE outbox")
        failed = service.create(customer_id=customer)
        assert failed.code is grpc.StatusCode.INTERNAL
        assert "`brewctl db init`" in failed.details
        assert failed.retry_after_s == (None, -0.001)  # gRPC's word for: don't
        assert rig.connection.execute("SELECT count(*) FROM orders").fetchone() == (0,)
        assert rig.brewctl("db", "init").returncode == 0
        assert service.create(customer_id=customer).code is grpc.StatusCode.OK
    rig.wait("the order's event in Kafka", lambda: rig.counts().outbox_unpublished == 0)
    assert rows_of(rig, customer) == (1, 1)
