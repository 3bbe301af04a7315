"""Group commit as clients see it: each call of a batch has an answer of its own, however the batch fares."""

import contextlib
import signal
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import psycopg
import pytest

from brewctl.lifecycle import wait_until
from brewctl.roles.order.call import Call
from tests.conftest import Rig, limited, open_rig
from tests.integration.grpc_tools import (
    CONCURRENT_CALLS,
    RETRY_AFTER_S,
    Answer,
    Service,
    answer,
    dialled,
    locked_orders,
    order,
    rows_of,
    somebody,
    taken_key,
    wait_for_blocked,
)
from tests.integration.held_node import HeldNode, by_way_of, held_node
from tests.tcp_proxy import proxied

OK, LATE = grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.fixture(scope="module")
def rig(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One for all tests here: each has customers of its own."""
    with open_rig(servers, tmp_path_factory.mktemp("grpc-group-commit")) as rig:
        yield rig


@pytest.fixture
def node(rig: Rig) -> Iterator[HeldNode]:
    with held_node(rig) as node:
        yield node


def ask(service: Service, *, metadata: tuple[tuple[str, str], ...] = (), timeout: float = 30, **fields: Any) -> Any:
    return service.stub.Create.future(order(**fields), metadata=metadata, timeout=timeout)


def answers(calls: list[Any]) -> list[Answer]:
    return [answer(lambda call=call: call.result(30)) for call in calls]  # type: ignore[misc]


@contextlib.contextmanager
def trigger(rig: Rig, body: str) -> Iterator[None]:
    """Before each order."""
    rig.connection.execute(
        f"CREATE FUNCTION before() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN new; END $$;"
        "CREATE TRIGGER before BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION before()"
    )
    try:
        yield
    finally:
        rig.connection.execute("DROP FUNCTION before CASCADE")


def test_a_bad_row_fails_alone(rig: Rig, node: HeldNode) -> None:
    customers = [somebody() for _ in range(7)]
    bad = customers[3]
    with trigger(rig, f"IF new.customer_id = '{bad}' THEN RAISE 'no credit'; END IF"):
        calls = [ask(node.client, customer_id=each) for each in customers]
        node.wait_for_batch(len(customers))
        node.writer.begin()
        codes = dict(zip(customers, (each.code for each in answers(calls)), strict=True))
    assert codes.pop(bad) is grpc.StatusCode.FAILED_PRECONDITION
    assert set(codes.values()) == {OK}
    assert rows_of(rig, bad) == (0, 0)
    assert {rows_of(rig, customer) for customer in codes} == {(1, 1)}


def test_equal_keys_of_a_batch_are_one_order_a_tenant_and_a_body(rig: Rig, node: HeldNode) -> None:
    same, torn, shared = somebody(), somebody(), somebody()
    same_key, torn_key, shared_key = (str(uuid.uuid4()) for _ in range(3))
    tea = (("x-tenant-id", "tea"),)
    calls = [
        ask(node.client, customer_id=same, idempotency_key=same_key),
        ask(node.client, customer_id=torn, idempotency_key=torn_key, amount_cents=1),
        ask(node.client, customer_id=shared, idempotency_key=shared_key),
        ask(node.client, customer_id=same, idempotency_key=same_key),
        ask(node.client, customer_id=torn, idempotency_key=torn_key, amount_cents=2),
        ask(node.client, customer_id=shared, idempotency_key=shared_key, metadata=tea),
    ]
    node.wait_for_batch(len(calls))
    node.writer.begin()
    first, one, brewed, again, another, steeped = answers(calls)
    assert first.response == again.response is not None
    assert {one.code, another.code} == {OK, grpc.StatusCode.ALREADY_EXISTS}
    (won,) = [each.response.order_id for each in (one, another) if each.code is OK]
    assert node.client.get(won).response.order.amount_cents == (1 if one.code is OK else 2)
    assert brewed.response.order_id != steeped.response.order_id
    assert [rows_of(rig, customer) for customer in (same, torn, shared)] == [(1, 1), (1, 1), (2, 2)]


def test_an_order_releases_its_slot_before_its_client_is_answered(
    node: HeldNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a client that asks again at once could be refused for its own order before."""
    in_hand: list[int] = []
    answered = Call.answer

    def noted(call: Call, message: bytes) -> None:
        in_hand.append(node.admission.in_hand)
        answered(call, message)

    monkeypatch.setattr(Call, "answer", noted)
    calls = [ask(node.client) for _ in range(5)]
    node.wait_for_batch(5)
    node.writer.begin()
    assert {each.code for each in answers(calls)} == {OK}
    assert in_hand == [4, 3, 2, 1, 0]


def test_nothing_is_written_for_who_waits_no_more_in_the_queue(rig: Rig, node: HeldNode) -> None:
    late, gone, neighbours = somebody(), somebody(), [somebody(), somebody()]
    calls = [ask(node.client, customer_id=neighbours[0])]
    too_late = ask(node.client, customer_id=late, timeout=0.3)
    cancelled = ask(node.client, customer_id=gone)
    calls.append(ask(node.client, customer_id=neighbours[1]))
    node.wait_for_batch(4)
    cancelled.cancel()
    assert too_late.exception().code() is LATE
    node.wait_for_gone(late)
    node.wait_for_gone(gone)
    node.writer.begin()
    assert {each.code for each in answers(calls)} == {OK}
    wait_until("no call in hand", lambda: node.admission.in_hand == 0, timeout_s=20, every_s=0.01)
    assert {rows_of(rig, customer) for customer in neighbours} == {(1, 1)}
    assert rows_of(rig, late) == rows_of(rig, gone) == (0, 0)


def test_a_batch_of_nobody_is_no_harm(rig: Rig, node: HeldNode) -> None:
    gone = somebody()
    call = ask(node.client, customer_id=gone)
    node.wait_for_batch(1)
    call.cancel()
    node.wait_for_gone(gone)
    node.writer.begin()
    assert node.client.create().code is OK
    assert rows_of(rig, gone) == (0, 0)


def test_who_goes_while_the_batch_is_written_takes_nobody_along(rig: Rig) -> None:
    gone, neighbour = somebody(), somebody()
    with held_node(rig, limited(rig.settings, create_batch_s=20.0, create_lock_s=0.0)) as node:
        going, staying = ask(node.client, customer_id=gone), ask(node.client, customer_id=neighbour)
        node.wait_for_batch(2)
        with locked_orders(rig):
            node.writer.begin()
            wait_for_blocked(rig, 1)
            going.cancel()
            node.wait_for_gone(gone)
        assert answers([staying])[0].code is OK
        assert node.client.create().code is OK
    assert rows_of(rig, gone) == rows_of(rig, neighbour) == (1, 1), "it was under way already"


def test_a_taken_key_holds_up_no_neighbour(rig: Rig, node: HeldNode) -> None:
    key, customers = str(uuid.uuid4()), [somebody() for _ in range(5)]
    with taken_key(rig, key):
        waiting = ask(node.client, idempotency_key=key)
        calls = [ask(node.client, customer_id=each) for each in customers]
        node.wait_for_batch(1 + len(customers))
        node.writer.begin()
        assert {each.code for each in answers(calls)} == {OK}
        assert not waiting.done()
    assert answers([waiting])[0].code is OK
    assert {rows_of(rig, customer) for customer in customers} == {(1, 1)}


def test_who_waits_for_the_writer_is_in_flight(node: HeldNode) -> None:
    calls = [ask(node.client) for _ in range(CONCURRENT_CALLS)]
    node.wait_for_batch(CONCURRENT_CALLS)
    turned_away = node.client.create()
    assert turned_away.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert turned_away.retry_after_s == RETRY_AFTER_S
    node.writer.begin()
    assert {each.code for each in answers(calls)} == {OK}
    assert node.client.create().code is OK


def test_a_commit_that_nobody_can_ask_about_is_no_unavailable(rig: Rig) -> None:
    """UNAVAILABLE says that nothing was written, and a caller without a key would order twice."""
    customer, place = somebody(), rig.connection.info
    with proxied(place.host, place.port) as proxy:
        settings = limited(rig.settings, create_batch_s=20.0, create_lock_s=0.0, database_wait_s=0.5)
        with held_node(rig, by_way_of(settings, proxy.port)) as node:
            call = ask(node.client, customer_id=customer)
            node.wait_for_batch(1)
            with locked_orders(rig):
                node.writer.begin()
                wait_for_blocked(rig, 1)
                proxy.swallowing.set()
            wait_until("the commit", lambda: rows_of(rig, customer) == (1, 1), timeout_s=20)
            proxy.close()
            (failed,) = answers([call])
            assert failed.code is grpc.StatusCode.INTERNAL
            assert "same idempotency key" in failed.details
            # Who comes now was surely not written.
            assert node.client.create().code is grpc.StatusCode.UNAVAILABLE
    assert rows_of(rig, customer) == (1, 1)


def test_a_node_that_stops_answers_all_that_it_has_taken(rig: Rig) -> None:
    """Also where the batch takes so long that each of its orders is tried alone, after the stop."""
    customer = somebody()
    node, address = rig.serve("order-stop")
    working = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'order-stop' AND state = 'active'"

    def at_work() -> int:
        ((sessions,),) = rig.connection.execute(working).fetchall()
        return int(str(sessions))

    # A lock whose wait lock_timeout doesn't end: the batch stays in the database, and the others gather behind it.
    gate = "WHILE NOT pg_try_advisory_xact_lock_shared(7) LOOP PERFORM pg_sleep(0.01); END LOOP"
    with trigger(rig, gate), dialled(rig, address) as service:
        with psycopg.connect(rig.settings.database_url) as holder:
            holder.execute("SELECT pg_advisory_xact_lock(7)")
            calls = [ask(service, customer_id=customer)]
            wait_until("a batch at the gate", lambda: at_work() == 1, timeout_s=20, every_s=0.01)
            calls += [ask(service, customer_id=customer) for _ in range(40)]
            assert service.health("").code is OK
            node.process.send_signal(signal.SIGTERM)
            wait_until("orders that are tried alone", lambda: at_work() > 1, timeout_s=20, every_s=0.01)
            holder.rollback()
        ended = answers(calls)
    assert node.ended(within_s=30) == 0
    # The last of them may have come after the signal, or even as the connection was closed: then nothing was written.
    taken = [each for each in ended if each.code is OK]
    assert len(taken) > 1
    assert {each.code for each in ended} <= {OK, grpc.StatusCode.UNAVAILABLE}, (ended, node.log.read_text())
    assert rows_of(rig, customer) == (len(taken), len(taken))
