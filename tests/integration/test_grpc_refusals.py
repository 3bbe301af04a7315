"""Orders that PostgreSQL will never take: each is answered for good, and costs its neighbours one bisection."""

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from brewctl.client import OrderClient
from brewctl.errors import BrewError, UnreachableError
from tests.conftest import Rig, open_rig
from tests.integration.grpc_tools import Answer, Service, answer, failing, order, rows_of, somebody
from tests.integration.held_node import HeldNode, held_node

OK = grpc.StatusCode.OK
NEVER = (None, -0.001)  # gRPC's word for: don't retry


@pytest.fixture(scope="module")
def rig(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One for all tests here: each has customers of its own."""
    with open_rig(servers, tmp_path_factory.mktemp("grpc-refusals")) as rig:
        yield rig


@pytest.fixture
def node(rig: Rig) -> Iterator[HeldNode]:
    with held_node(rig) as node:
        yield node


def ask(service: Service, **fields: Any) -> Any:
    return service.stub.Create.future(order(**fields), timeout=60)


def answers(calls: list[Any]) -> list[Answer]:
    return [answer(lambda call=call: call.result(30)) for call in calls]  # type: ignore[misc]


# The text that the order has, so that it is not taken.
BAD = "a customer whom nobody wants"


@contextlib.contextmanager
def changed(rig: Rig, change: str, undo: str) -> Iterator[None]:
    rig.connection.execute(change)
    try:
        yield
    finally:
        rig.connection.execute(undo)


# How the schema is changed, and back, and what PostgreSQL says of an order then.
CHANGES = {
    "check": (
        f"ALTER TABLE orders ADD CONSTRAINT ours CHECK (customer_id <> '{BAD}') NOT VALID",
        "ALTER TABLE orders DROP CONSTRAINT ours",
        'violates check constraint "ours"',
    ),
    "foreign key": (
        "ALTER TABLE orders ADD CONSTRAINT ours FOREIGN KEY (customer_id) REFERENCES known NOT VALID",
        "ALTER TABLE orders DROP CONSTRAINT ours",
        'violates foreign key constraint "ours"',
    ),
    "not null": (
        "ALTER TABLE orders ADD COLUMN ours text NOT NULL DEFAULT 'x'; ALTER TABLE orders ALTER ours DROP DEFAULT",
        "ALTER TABLE orders DROP COLUMN ours",
        'null value in column "ours"',
    ),
    "too long": (
        "ALTER TABLE orders ALTER customer_id TYPE varchar(5) USING 'x'",
        "ALTER TABLE orders ALTER customer_id TYPE text",
        "value too long for type character varying(5)",
    ),
    "column": (
        "ALTER TABLE orders RENAME currency TO money",
        "ALTER TABLE orders RENAME money TO currency",
        'column "currency" of relation "orders" does not exist',
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_constraint_rejects_is_answered_for_good(rig: Rig, node: HeldNode, change: str) -> None:
    node.writer.begin()
    do, undo, said = CHANGES[change]
    rig.connection.execute("CREATE TABLE IF NOT EXISTS known (id text PRIMARY KEY)")
    with changed(rig, do, undo):
        refused = node.client.create(customer_id=BAD)
        assert refused.code is grpc.StatusCode.FAILED_PRECONDITION, refused
        assert said in refused.details
        assert refused.retry_after_s == NEVER
    assert rows_of(rig, BAD) == (0, 0)
    assert node.client.create().code is OK


@pytest.mark.parametrize("at_commit", [False, True])
@pytest.mark.parametrize(
    ("action", "code"),
    [
        ("RAISE 'no credit'", grpc.StatusCode.FAILED_PRECONDITION),
        ("RAISE SQLSTATE 'BR001' USING MESSAGE = 'no credit'", grpc.StatusCode.FAILED_PRECONDITION),
        ("RAISE 'no credit' USING ERRCODE = 'check_violation'", grpc.StatusCode.FAILED_PRECONDITION),
        ("ASSERT false, 'no credit'", grpc.StatusCode.FAILED_PRECONDITION),
        ("RAISE 'no credit' USING ERRCODE = 'character_not_in_repertoire'", grpc.StatusCode.INVALID_ARGUMENT),
        ("RAISE 'no credit' USING ERRCODE = 'untranslatable_character'", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_what_a_trigger_rejects_is_answered_for_good(
    rig: Rig, node: HeldNode, action: str, at_commit: bool, code: grpc.StatusCode
) -> None:
    node.writer.begin()
    customer = somebody()
    with failing(rig, action, at_commit=at_commit):
        refused = node.client.create(customer_id=customer, idempotency_key=str(uuid.uuid4()))
    assert refused.code is code, refused
    assert refused.details.endswith("no credit")
    assert rows_of(rig, customer) == (0, 0)


def test_a_repeated_key_is_answered_though_its_order_would_be_refused_by_now(rig: Rig, node: HeldNode) -> None:
    node.writer.begin()
    customer, key = somebody(), str(uuid.uuid4())
    first = node.client.create(customer_id=customer, idempotency_key=key)
    change = f"ALTER TABLE orders ADD CONSTRAINT later CHECK (customer_id <> '{customer}') NOT VALID"
    with changed(rig, change, "ALTER TABLE orders DROP CONSTRAINT later"):
        again = node.client.create(customer_id=customer, idempotency_key=key)
        another = node.client.create(customer_id=customer, idempotency_key=str(uuid.uuid4()))
        reused = node.client.create(customer_id=customer, idempotency_key=key, amount_cents=1)
    assert (again.code, again.response) == (OK, first.response), again
    assert another.code is grpc.StatusCode.FAILED_PRECONDITION
    assert reused.code is grpc.StatusCode.ALREADY_EXISTS
    assert rows_of(rig, customer) == (1, 1)


def test_a_message_that_is_longer_than_a_header_may_be_is_cut(rig: Rig, node: HeldNode) -> None:
    node.writer.begin()
    with failing(rig, "RAISE '%', repeat('☕', 100000)", at_commit=False):
        refused = node.client.create()
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION, refused
    assert "☕…" in refused.details


def test_the_client_does_not_ask_again(rig: Rig, node: HeldNode) -> None:
    node.writer.begin()
    with failing(rig, "RAISE 'no credit'", at_commit=True), OrderClient([node.client.address]) as client:
        with pytest.raises(BrewError, match="no credit") as refused:
            client.create(somebody(), amount_cents=1, currency="EUR")
        assert not isinstance(refused.value, UnreachableError)
    assert len(node.writer.submitted) == 1


@contextlib.contextmanager
def counted(rig: Rig, bad: str) -> Iterator[Any]:
    """Statements that insert orders, also those that fail: a sequence is not rolled back. One customer's fail."""
    with changed(
        rig,
        "CREATE SEQUENCE statements;"
        "CREATE FUNCTION counting() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM nextval('statements'); RETURN NULL; END $$;"
        "CREATE TRIGGER counting BEFORE INSERT ON orders FOR EACH STATEMENT EXECUTE FUNCTION counting();"
        "CREATE FUNCTION refusing() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN IF new.customer_id = '{bad}' THEN RAISE 'no credit'; END IF; RETURN new; END $$;"
        "CREATE TRIGGER refusing BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION refusing()",
        "DROP FUNCTION counting CASCADE; DROP FUNCTION refusing CASCADE; DROP SEQUENCE statements",
    ):
        yield lambda: int(str((rig.connection.execute("SELECT last_value FROM statements").fetchone() or (0,))[0]))


@pytest.mark.parametrize("place", [0, 21, 63])
def test_a_bad_order_costs_its_batch_one_bisection(rig: Rig, node: HeldNode, place: int) -> None:
    customers = [somebody() for _ in range(64)]
    bad = customers[place]
    with counted(rig, bad) as statements:
        calls = [ask(node.client, customer_id=each) for each in customers]
        node.wait_for_batch(64)
        node.writer.begin()
        ended = dict(zip(customers, answers(calls), strict=True))
        # The whole, then at most two halves six times: 64, 32, 16, 8, 4, 2, 1.
        assert statements() <= 1 + 2 * 6
    assert ended.pop(bad).code is grpc.StatusCode.FAILED_PRECONDITION
    assert {each.code for each in ended.values()} == {OK}
    assert rows_of(rig, bad) == (0, 0)
    assert {rows_of(rig, each) for each in ended} == {(1, 1)}


def test_text_that_the_connection_has_no_bytes_for_ends_its_own_call(node: HeldNode) -> None:
    """The client library raises that itself, before anything is sent."""
    with contextlib.ExitStack() as all_of_them:
        for pool in node.writer.pools:
            for _ in range(pool.max_size):
                connection = all_of_them.enter_context(pool.connection(20))
                connection.execute("SET client_encoding TO 'LATIN1'")
    customers = ["café", "☕", "tea"]
    calls = [ask(node.client, customer_id=each) for each in customers]
    node.wait_for_batch(3)
    node.writer.begin()
    good, bad, too = answers(calls)
    assert (good.code, bad.code, too.code) == (OK, grpc.StatusCode.INVALID_ARGUMENT, OK), (good, bad, too)
    assert node.client.get(good.response.order_id).response.order.customer_id == "café"
    assert node.client.create().code is OK


# Exceptions of our own


def test_an_exception_in_the_writer_ends_the_call_that_it_is_about(
    rig: Rig, node: HeldNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, customers = somebody(), [somebody() for _ in range(7)]
    calls = [ask(node.client, customer_id=each) for each in [*customers, bad]]
    node.wait_for_batch(8)
    (unlucky,) = [each for each in node.writer.submitted if each.new.order.customer_id == bad]
    event = type(unlucky.new).event

    def fail(new: Any) -> bytes:
        if new.order.customer_id == bad:
            raise RuntimeError("something unforeseen")
        return event(new)

    monkeypatch.setattr(type(unlucky.new), "event", fail)
    node.writer.begin()
    *others, failed = answers(calls)
    assert failed.code is grpc.StatusCode.INTERNAL
    assert {each.code for each in others} == {OK}
    assert node.client.create().code is OK
    assert rows_of(rig, bad) == (0, 0)
    assert "something unforeseen" in capsys.readouterr().out


@pytest.mark.parametrize("broken", ["answer", "notify", "alone"])
def test_nothing_that_answers_ends_the_writer(
    rig: Rig,
    node: HeldNode,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    broken: str,
) -> None:
    def fail(*_arguments: object, **_named: object) -> None:
        raise RuntimeError("something unforeseen")

    node.writer.begin()
    key = str(uuid.uuid4())
    with monkeypatch.context() as patch:
        if broken == "notify":
            patch.setattr(node.writer, "_notify", fail)
            assert node.client.create(idempotency_key=key).code is OK
        elif broken == "answer":
            patch.setattr("brewctl.roles.order.call.Call.answer", fail)
            assert node.client.create(idempotency_key=key).code is grpc.StatusCode.INTERNAL
        else:
            patch.setattr("brewctl.delivery.orders.store.create", fail)
            with failing(rig, "RAISE SQLSTATE '40001'", at_commit=False):  # so that it is tried alone
                assert node.client.create(idempotency_key=key).code is grpc.StatusCode.INTERNAL
    assert "something unforeseen" in capsys.readouterr().out
    assert node.client.create(idempotency_key=key).code is OK, "the writer goes on"
