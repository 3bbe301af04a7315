"""Orders that another transaction holds up: by their key, or by a row. They delay no call but their own."""

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import psycopg
import pytest

from brewctl.delivery.orders.acceptance import NewOrder
from brewctl.lifecycle import wait_until
from brewctl.limits import Limits
from brewctl.proto import orders_pb2
from tests.conftest import Rig, limited, open_rig
from tests.integration.grpc_tools import (
    RETRY_AFTER_S,
    Answer,
    Service,
    answer,
    dialled,
    failing,
    knows_of,
    order,
    rows_of,
    somebody,
    taken_key,
)
from tests.integration.held_node import held_node

OK = grpc.StatusCode.OK
LIMITS = Limits()


@pytest.fixture(scope="module")
def rig(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One for all tests here: each has keys and customers of its own."""
    with open_rig(servers, tmp_path_factory.mktemp("grpc-held-keys")) as rig:
        yield rig


@pytest.fixture(scope="module")
def service(rig: Rig) -> Iterator[Service]:
    with dialled(rig, rig.serve()[1]) as service:
        yield service


def ask(service: Service, **fields: Any) -> Any:
    return service.stub.Create.future(order(**fields), timeout=60)


def answers(calls: list[Any]) -> list[Answer]:
    return [answer(lambda call=call: call.result(30)) for call in calls]  # type: ignore[misc]


@contextlib.contextmanager
def taken_keys(rig: Rig, keys: list[str]) -> Iterator[None]:
    """Another session has written orders with these keys and has not committed them."""
    with contextlib.ExitStack() as held:
        for key in keys:
            held.enter_context(taken_key(rig, key))
        yield


def nobody_else_waits(service: Service, held: list[Any], replayed: str) -> None:
    """Every other call is answered, while those that are held still wait."""
    key = str(uuid.uuid4())
    for _ in range(5):
        created = service.create(customer_id=somebody())
        assert created.code is OK, created
        assert service.create(customer_id=somebody(), idempotency_key=str(uuid.uuid4())).code is OK
        assert service.create(customer_id="again", idempotency_key=key).code is OK
        assert service.create(customer_id="replayed", idempotency_key=replayed).code is OK
        assert service.get(created.response.order_id).code is OK
    assert not any(call.done() for call in held), "they wait all the time"


@pytest.fixture
def replayed(service: Service) -> str:
    """A key whose order is committed."""
    key = str(uuid.uuid4())
    assert service.create(customer_id="replayed", idempotency_key=key).code is OK
    return key


@pytest.mark.parametrize("keys", [1, 32])
def test_creates_on_keys_that_another_transaction_holds_delay_nobody(
    service: Service, replayed: str, keys: int
) -> None:
    customer, held_keys = somebody(), [str(uuid.uuid4()) for _ in range(keys)]
    with taken_keys(service.rig, held_keys):
        held = [ask(service, customer_id=customer, idempotency_key=held_keys[n % keys]) for n in range(32)]
        knows_of(service)
        nobody_else_waits(service, held, replayed)
        assert sessions_of(service.rig, "order-1") <= LIMITS.order_connections
    ended = answers(held)
    assert {each.code for each in ended} == {OK}
    assert len({each.response.order_id for each in ended}) == keys
    assert rows_of(service.rig, customer) == (keys, keys)


def sessions_of(rig: Rig, node: str) -> int:
    ((count,),) = rig.connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s", (node,)
    ).fetchall()
    assert isinstance(count, int)
    return count


def test_a_key_that_is_held_for_too_long_ends_its_calls_in_time(service: Service) -> None:
    customer, key = somebody(), str(uuid.uuid4())
    with taken_key(service.rig, key):
        held = [ask(service, customer_id=customer, idempotency_key=key) for _ in range(8)]
        ended = answers(held)
    assert {(each.code, each.retry_after_s) for each in ended} == {(grpc.StatusCode.UNAVAILABLE, RETRY_AFTER_S)}
    assert rows_of(service.rig, customer) == (0, 0)
    assert service.create(customer_id=customer, idempotency_key=key).code is OK


def test_who_holds_the_key_commits_and_all_hear_of_its_order(service: Service) -> None:
    customer, key = somebody(), str(uuid.uuid4())
    with psycopg.connect(service.rig.settings.database_url) as other:
        other.execute(
            "INSERT INTO orders (id, tenant_id, customer_id, amount_cents, currency, status, idempotency_key)"
            " VALUES (gen_random_uuid(), 'brew', %s, 450, 'EUR', 'ORDER_STATUS_NEW', %s)",
            (customer, key),
        )
        same = [ask(service, customer_id=customer, idempotency_key=key) for _ in range(8)]
        another = [ask(service, customer_id="other", idempotency_key=key) for _ in range(8)]
        knows_of(service)
        other.commit()
    ended = answers(same)
    assert {each.code for each in ended} == {OK}
    assert len({each.response.order_id for each in ended}) == 1
    assert {each.code for each in answers(another)} == {grpc.StatusCode.ALREADY_EXISTS}
    assert rows_of(service.rig, customer) == (1, 0), "its order alone, which has no event"


def test_of_too_many_on_held_keys_some_are_turned_away_and_others_are_served(service: Service, replayed: str) -> None:
    key = str(uuid.uuid4())
    with taken_key(service.rig, key):
        first = ask(service, idempotency_key=key)
        service.create()  # by then the key is known to be held, at the latest
        many = [first, *(ask(service, idempotency_key=key) for _ in range(2 * LIMITS.held_orders))]
        turned_away = 1 + 2 * LIMITS.held_orders - LIMITS.held_orders - 1
        wait_until("calls turned away", lambda: sum(call.done() for call in many) == turned_away, timeout_s=20)
        nobody_else_waits(service, [call for call in many if not call.done()], replayed)
        ended = answers([call for call in many if call.done()])
    assert {each.code for each in ended} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert {each.retry_after_s for each in ended} == {RETRY_AFTER_S}


def test_orders_at_a_row_that_is_locked_delay_nobody(service: Service, replayed: str) -> None:
    """A trigger counts the orders of each customer; somebody has that row of one customer locked."""
    rig, customer = service.rig, somebody()
    rig.connection.execute(
        "CREATE TABLE tally (customer_id text PRIMARY KEY, orders integer NOT NULL);"
        "CREATE FUNCTION tally() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " UPDATE tally SET orders = orders + 1 WHERE customer_id = new.customer_id; RETURN new; END $$;"
        "CREATE TRIGGER tally BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION tally()"
    )
    rig.connection.execute("INSERT INTO tally VALUES (%s, 0)", (customer,))
    try:
        with psycopg.connect(rig.settings.database_url) as holder:
            holder.execute("SELECT FROM tally WHERE customer_id = %s FOR UPDATE", (customer,))
            held = [ask(service, customer_id=customer) for _ in range(32)]
            knows_of(service)
            nobody_else_waits(service, held, replayed)
        assert {each.code for each in answers(held)} == {OK}
    finally:
        rig.connection.execute("DROP FUNCTION tally CASCADE; DROP TABLE tally")
    assert rows_of(rig, customer) == (32, 32)


def test_a_lock_that_is_refused_at_once_is_asked_for_again_without_a_hot_loop(rig: Rig) -> None:
    """As by NOWAIT in a trigger: a sequence counts the tries, also those that are rolled back."""
    rig.connection.execute(
        "CREATE SEQUENCE tries;"
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM nextval('tries'); RAISE SQLSTATE '55P03'; END $$;"
        "CREATE TRIGGER refuse BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    try:
        with held_node(rig, limited(rig.settings, create_s=2.0)) as node:
            node.writer.begin()
            assert node.client.create().code is grpc.StatusCode.UNAVAILABLE
    finally:
        rig.connection.execute("DROP FUNCTION refuse CASCADE")
    ((tries,),) = rig.connection.execute("SELECT last_value FROM tries").fetchall()
    assert 2 < int(str(tries)) <= 2 + 2.0 / LIMITS.create_lock_s
    rig.connection.execute("DROP SEQUENCE tries")


def test_a_commit_that_takes_longer_than_a_batch_may_is_given_the_time_of_its_call(rig: Rig) -> None:
    customer = somebody()
    with (
        held_node(rig, limited(rig.settings, create_s=30.0)) as node,
        failing(rig, "PERFORM pg_sleep(1.5)", at_commit=True),
    ):
        node.writer.begin()
        assert node.client.create(customer_id=customer).code is OK
    assert rows_of(rig, customer) == (1, 1)


def test_a_repeated_key_is_read_by_the_writer_and_tried_by_nobody(service: Service, monkeypatch: Any) -> None:
    """So it costs one statement more, of a whole batch, and no thread."""
    rig = service.rig
    with held_node(rig) as node:
        tried: list[NewOrder] = []
        monkeypatch.setattr("brewctl.delivery.orders.store.create", lambda _connection, new, **_: tried.append(new))
        node.writer.begin()
        key, customer = str(uuid.uuid4()), somebody()
        first = node.client.create(customer_id=customer, idempotency_key=key)
        assert first.code is OK
        again = answers([ask(node.client, customer_id=customer, idempotency_key=key) for _ in range(20)])
        assert {each.response.order_id for each in again} == {first.response.order_id}
        other = node.client.create(customer_id="other", idempotency_key=key)
        assert other.code is grpc.StatusCode.ALREADY_EXISTS
        assert not tried


# A status of a later version


def test_a_status_that_this_version_does_not_know_is_no_exception(service: Service) -> None:
    customer, key = somebody(), str(uuid.uuid4())
    created = service.create(customer_id=customer, idempotency_key=key).response
    service.rig.connection.execute("UPDATE orders SET status = 'SHIPPED' WHERE id = %s", (created.order_id,))
    read = service.get(created.order_id)
    assert read.response.order.status == orders_pb2.ORDER_STATUS_UNSPECIFIED
    assert read.response.order.customer_id == customer
    again = service.create(customer_id=customer, idempotency_key=key)
    assert (again.response.order_id, again.response.status) == (
        created.order_id,
        orders_pb2.ORDER_STATUS_UNSPECIFIED,
    )
