"""What a gRPC client of order-service may rely on, against a real `brewctl serve order`."""

import contextlib
import re
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from brewctl.lifecycle import wait_until
from brewctl.proto import orders_pb2, orders_pb2_grpc
from tests.conftest import Rig, open_rig
from tests.integration.kafka_tools import finish, refused_connections

SERVICE = "brew.orders.v1.OrderService"
CONCURRENT_CALLS = 256
HANDLER_THREADS = 16
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


class Answer(NamedTuple):
    """How a call ended."""

    code: grpc.StatusCode
    details: str
    response: Any


@dataclass
class Service:
    """An order node, and the database behind it."""

    rig: Rig
    address: str
    channel: grpc.Channel

    @property
    def stub(self) -> Any:
        return orders_pb2_grpc.OrderServiceStub(self.channel)  # type: ignore[no-untyped-call]

    def create(self, *, metadata: tuple[tuple[str, str], ...] = (), timeout: float = 30, **fields: Any) -> Answer:
        return answer(lambda: self.stub.Create(order(**fields), metadata=metadata, timeout=timeout))

    def get(self, order_id: str) -> Answer:
        return answer(lambda: self.stub.Get(orders_pb2.GetRequest(order_id=order_id), timeout=30))


def order(**fields: Any) -> orders_pb2.CreateRequest:
    return orders_pb2.CreateRequest(**{"customer_id": "alice", "amount_cents": 450, "currency": "EUR", **fields})


def answer(call: Callable[[], Any]) -> Answer:
    try:
        return Answer(grpc.StatusCode.OK, "", call())
    except grpc.RpcError as error:
        return Answer(error.code(), error.details(), None)


@contextlib.contextmanager
def dialled(rig: Rig, address: str) -> Iterator[Service]:
    with grpc.insecure_channel(address) as channel:
        yield Service(rig, address, channel)


@pytest.fixture(scope="module")
def service(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with open_rig(servers, tmp_path_factory.mktemp("grpc")) as rig, dialled(rig, rig.serve()[1]) as service:
        yield service


def somebody() -> str:
    return f"customer-{uuid.uuid4()}"


def rows(rig: Rig) -> tuple[object, ...]:
    """How many orders and outbox rows there are."""
    row = rig.connection.execute("SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM outbox)").fetchone()
    assert row is not None
    return row


def rows_of(rig: Rig, customer_id: str) -> tuple[object, ...]:
    """How many orders a customer has, and how many outbox rows those have."""
    row = rig.connection.execute(
        "SELECT count(DISTINCT o.id), count(x.id) FROM orders o LEFT JOIN outbox x ON x.aggregate_id = 'order-' || o.id"
        " WHERE o.customer_id = %s",
        (customer_id,),
    ).fetchone()
    assert row is not None
    return row


def event_of(rig: Rig, order_id: str) -> orders_pb2.OrderCreated:
    """What the only outbox row of an order says."""
    found = rig.connection.execute("SELECT payload FROM outbox WHERE aggregate_id = %s", (f"order-{order_id}",))
    ((payload,),) = found.fetchall()
    assert isinstance(payload, bytes)
    return orders_pb2.OrderCreated.FromString(payload)


@contextlib.contextmanager
def locked_orders(rig: Rig) -> Iterator[None]:
    """Nobody reads or writes the orders table meanwhile."""
    with psycopg.connect(rig.settings.database_url) as holder:
        holder.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        yield
        holder.rollback()


def wait_for_blocked(rig: Rig, handlers: int) -> None:
    """Wait until so many handlers stand in front of the locked table."""
    waiting = (
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'orders'::regclass"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    wait_until(
        f"{handlers} handlers at the lock",
        lambda: rig.connection.execute(waiting).fetchone() == (handlers,),
        timeout_s=20,
        every_s=0.02,
    )


# Create and Get


def test_an_order_is_answered_with_its_id_and_read_back(service: Service) -> None:
    customer = somebody()
    before = datetime.now(UTC)
    created = service.create(customer_id=customer, amount_cents=1234, currency="JPY").response
    assert str(uuid.UUID(created.order_id)) == created.order_id
    assert created.status == orders_pb2.ORDER_STATUS_NEW
    read = service.get(created.order_id).response.order
    assert (read.order_id, read.customer_id, read.amount_cents, read.currency, read.status) == (
        created.order_id,
        customer,
        1234,
        "JPY",
        orders_pb2.ORDER_STATUS_NEW,
    )
    hour = timedelta(hours=1)  # a clock read elsewhere, in any time zone but UTC, would be off by more
    assert before - hour < read.created_at.ToDatetime(tzinfo=UTC) < before + hour
    assert event_of(service.rig, created.order_id).created_at == read.created_at
    assert rows_of(service.rig, customer) == (1, 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"amount_cents": 1},
        {"amount_cents": 10**12},
        {"customer_id": "x"},
        {"customer_id": "é" * 128},
        {"customer_id": "☕" * 128},
        {"customer_id": "'; DROP TABLE orders; --"},
        {"idempotency_key": "k" * 255},
    ],
    ids=lambda fields: next(iter(fields)) + f"-{str(next(iter(fields.values())))[:8]}",
)
def test_the_edges_of_good_input_are_taken(service: Service, fields: dict[str, Any]) -> None:
    created = service.create(**fields)
    assert created.code is grpc.StatusCode.OK, created.details
    sent, read = order(**fields), service.get(created.response.order_id).response.order
    assert (read.customer_id, read.amount_cents) == (sent.customer_id, sent.amount_cents)


@pytest.mark.parametrize(
    "order_id",
    [
        str(uuid.uuid4()),
        "",
        "order-1",
        "not a uuid",
        "\x00",
        "é" * 40_000,
        # Python's uuid.UUID() takes these, PostgreSQL's uuid does not.
        f"urn:uuid:{uuid.uuid4()}",
        f"{{{uuid.uuid4()}",
        f"{uuid.uuid4()}-",
    ],
    ids=["unknown", "empty", "short", "words", "nul", "long", "urn", "open-brace", "stray-dash"],
)
def test_get_of_no_order_is_not_found(service: Service, order_id: str) -> None:
    got = service.get(order_id)
    assert got.code is grpc.StatusCode.NOT_FOUND, got


# Bad input


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"amount_cents": 0}, "amount_cents"),
        ({"amount_cents": -1}, "amount_cents"),
        ({"amount_cents": -(2**63)}, "amount_cents"),
        ({"amount_cents": 10**12 + 1}, "amount_cents"),
        ({"amount_cents": 2**63 - 1}, "amount_cents"),
        ({"currency": ""}, "currency"),
        ({"currency": "eur"}, "currency"),
        ({"currency": "ZZZ"}, "currency"),
        ({"currency": "EURO"}, "currency"),
        ({"currency": "E\x00R"}, "currency"),
        ({"customer_id": ""}, "customer_id"),
        ({"customer_id": "c" * 129}, "customer_id"),
        ({"customer_id": "a\x00b"}, "customer_id"),
        ({"customer_id": "a\nb"}, "customer_id"),
        ({"customer_id": "a\x7f"}, "customer_id"),
        ({"customer_id": "a\x85b"}, "customer_id"),
        ({"idempotency_key": "k" * 256}, "idempotency_key"),
        ({"idempotency_key": "k\x00"}, "idempotency_key"),
    ],
)
def test_bad_input_is_refused_by_name_and_writes_nothing(service: Service, fields: dict[str, Any], named: str) -> None:
    before = rows(service.rig)
    refused = service.create(**fields)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    others = {"amount_cents", "currency", "customer_id", "idempotency_key", "x-tenant-id"} - {named}
    assert named in refused.details
    assert not any(other in refused.details for other in others), refused.details
    assert rows(service.rig) == before


@pytest.mark.parametrize("tenant", ["", "a b", "a/b", "t" * 65, "tenant!"])
def test_a_bad_tenant_is_refused_by_name_and_writes_nothing(service: Service, tenant: str) -> None:
    before = rows(service.rig)
    refused = service.create(metadata=(("x-tenant-id", tenant),))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "x-tenant-id" in refused.details
    assert rows(service.rig) == before


def test_every_violation_is_named_at_once(service: Service) -> None:
    before = rows(service.rig)
    refused = service.create(
        customer_id="\x00" * 200,
        amount_cents=0,
        currency="?",
        idempotency_key="k" * 256,
        metadata=(("x-tenant-id", "no tenant"),),
    )
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    for violation in (
        "customer_id must have 1 to 128 characters",
        "customer_id must not contain control characters",
        "amount_cents",
        "currency",
        "idempotency_key",
        "x-tenant-id",
    ):
        assert violation in refused.details
    assert rows(service.rig) == before


@pytest.mark.parametrize("size", [100 * 1024, 4 * 1024 * 1024])
def test_a_request_too_large_for_kafka_is_refused_and_the_server_goes_on(service: Service, size: int) -> None:
    request = order(customer_id="c" * size)
    before = rows(service.rig)
    refused = answer(lambda: service.stub.Create(request, timeout=30))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"request has {request.ByteSize()} bytes" in refused.details
    assert len(refused.details) < 1000
    assert rows(service.rig) == before
    assert service.create().code is grpc.StatusCode.OK


# Trace and tenant


@pytest.mark.parametrize(
    "traceparent",
    [f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00", f"cc-{TRACE}-{PARENT}-01-what-the-future-brings"],
)
def test_a_trace_goes_on(service: Service, traceparent: str) -> None:
    created = service.create(metadata=(("traceparent", traceparent), ("x-tenant-id", "Caffe.2_go-")))
    event = event_of(service.rig, created.response.order_id)
    assert (event.trace_id, event.tenant_id) == (TRACE, "Caffe.2_go-")


@pytest.mark.parametrize(
    "traceparent",
    [
        None,
        "",
        "garbage",
        TRACE,
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE[:-1]}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01" * 100,
    ],
)
def test_a_malformed_trace_is_replaced_by_a_new_one(service: Service, traceparent: str | None) -> None:
    metadata = () if traceparent is None else (("traceparent", traceparent),)
    traces = {event_of(service.rig, service.create(metadata=metadata).response.order_id).trace_id for _ in range(2)}
    assert len(traces) == 2
    assert TRACE not in traces
    assert all(re.fullmatch("[0-9a-f]{32}", trace) and set(trace) != {"0"} for trace in traces)


def test_the_event_says_what_the_order_says(service: Service) -> None:
    customer = somebody()
    created = service.create(customer_id=customer, amount_cents=10**12, currency="CHF").response
    event = event_of(service.rig, created.order_id)
    read = service.get(created.order_id).response.order
    for name in ("order_id", "customer_id", "amount_cents", "currency", "status", "created_at"):
        assert getattr(event, name) == getattr(read, name), name
    assert event.tenant_id == "brew"


# Idempotency


def test_the_same_key_and_body_return_the_first_order(service: Service) -> None:
    customer, key = somebody(), str(uuid.uuid4())
    answers = [service.create(customer_id=customer, idempotency_key=key).response for _ in range(3)]
    assert len({first.order_id for first in answers}) == 1
    assert {first.status for first in answers} == {orders_pb2.ORDER_STATUS_NEW}
    assert rows_of(service.rig, customer) == (1, 1)


@pytest.mark.parametrize("other", [{"customer_id": "bob"}, {"amount_cents": 451}, {"currency": "USD"}])
def test_the_same_key_with_another_body_already_exists(service: Service, other: dict[str, Any]) -> None:
    key = str(uuid.uuid4())
    first = service.create(idempotency_key=key).response
    before = rows(service.rig)
    assert service.create(idempotency_key=key, **other).code is grpc.StatusCode.ALREADY_EXISTS
    assert rows(service.rig) == before
    assert service.create(idempotency_key=key).response.order_id == first.order_id


def test_a_key_belongs_to_its_tenant(service: Service) -> None:
    customer, key = somebody(), str(uuid.uuid4())
    tenants = ((), (("x-tenant-id", "tea"),), (("x-tenant-id", "T" * 64),), (("x-tenant-id", "brew"),))

    def create() -> list[str]:
        return [
            service.create(customer_id=customer, idempotency_key=key, metadata=tenant).response.order_id
            for tenant in tenants
        ]

    ids = create()
    assert ids[0] == ids[3]  # `brew` is the tenant of those that name none
    assert len(set(ids)) == 3
    assert create() == ids
    assert rows_of(service.rig, customer) == (3, 3)


def test_without_a_key_every_call_is_an_order(service: Service) -> None:
    customer = somebody()
    assert len({service.create(customer_id=customer).response.order_id for _ in range(2)}) == 2
    assert rows_of(service.rig, customer) == (2, 2)


def test_two_replicas_racing_on_one_key_make_one_order(service: Service) -> None:
    threads, races = 20, 5
    start = threading.Barrier(threads)
    _, other_address = service.rig.serve("order-2")
    with dialled(service.rig, other_address) as other, ThreadPoolExecutor(threads) as pool:
        for race in range(races):
            customer, key = somebody(), str(uuid.uuid4())

            def create(turn: int, customer: str = customer, key: str = key) -> tuple[int, Answer]:
                start.wait(30)
                amount = 1 + turn // 2 % 2  # both bodies at both replicas
                replica = (service, other)[turn % 2]
                return amount, replica.create(customer_id=customer, idempotency_key=key, amount_cents=amount)

            answers = list(pool.map(create, range(threads)))
            assert rows_of(service.rig, customer) == (1, 1), f"race {race}"
            ids = {got.response.order_id for _, got in answers if got.code is grpc.StatusCode.OK}
            assert len(ids) == 1
            won = service.get(ids.pop()).response.order.amount_cents
            for amount, got in answers:
                expected = grpc.StatusCode.OK if amount == won else grpc.StatusCode.ALREADY_EXISTS
                assert got.code is expected, got


# Around the service


def test_reflection_lists_the_service(service: Service) -> None:
    reflected = ProtoReflectionDescriptorDatabase(service.channel)
    assert SERVICE in reflected.get_services()
    described = reflected.FindFileContainingSymbol(SERVICE)
    assert {method.name for method in described.service[0].method} == {"Create", "Get"}


def test_health_is_serving(service: Service) -> None:
    health = health_pb2_grpc.HealthStub(service.channel)
    for name in ("", SERVICE):
        answered = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=30)
        assert answered.status == health_pb2.HealthCheckResponse.SERVING
    unknown = answer(lambda: health.Check(health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=30))
    assert unknown.code is grpc.StatusCode.NOT_FOUND


# Deadlines, overload, a failing database


def test_a_call_whose_deadline_passed_in_the_queue_writes_nothing(service: Service) -> None:
    node, address = service.rig.serve("order-queue")
    early, late = somebody(), somebody()
    with dialled(service.rig, address) as busy:
        with locked_orders(service.rig):
            first = [busy.stub.Create.future(order(customer_id=early)) for _ in range(HANDLER_THREADS)]
            wait_for_blocked(service.rig, HANDLER_THREADS)
            queued = [busy.stub.Create.future(order(customer_id=late), timeout=0.3) for _ in range(HANDLER_THREADS)]
            assert {call.exception().code() for call in queued} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert all(call.result(30).order_id for call in first)
    # Its end says that no handler is left that could still write.
    assert finish(node) == 0
    assert rows_of(service.rig, early) == (HANDLER_THREADS, HANDLER_THREADS)
    assert rows_of(service.rig, late) == (0, 0)


def test_a_call_whose_deadline_passed_while_the_database_was_away_writes_nothing(
    service: Service, servers: dict[str, str]
) -> None:
    node, address = service.rig.serve("order-away")
    customer = somebody()
    with dialled(service.rig, address) as away, refused_connections(service.rig, servers, node.name):
        # Its handler waits for a connection, and goes on when there is one again.
        late = away.create(customer_id=customer, timeout=0.3)
        assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED
    # Its end says that no handler is left that could still write.
    assert finish(node) == 0
    assert rows_of(service.rig, customer) == (0, 0)


def test_a_deadline_that_passes_inside_the_commit_leaves_all_or_nothing_and_the_key_settles_it(
    service: Service,
) -> None:
    """The statement is with PostgreSQL when the caller goes away: whether it commits is not known to anybody."""
    customer, key = somebody(), str(uuid.uuid4())
    with locked_orders(service.rig):
        call = service.stub.Create.future(order(customer_id=customer, idempotency_key=key), timeout=1)
        wait_for_blocked(service.rig, 1)
        assert call.exception().code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_for_blocked(service.rig, 0)
    assert rows_of(service.rig, customer) in {(0, 0), (1, 1)}
    retried = service.create(customer_id=customer, idempotency_key=key)
    assert retried.code is grpc.StatusCode.OK
    assert rows_of(service.rig, customer) == (1, 1)


def test_too_many_in_flight_are_turned_away_and_the_rest_are_served(service: Service) -> None:
    calls, customer = 300, somebody()
    with locked_orders(service.rig):
        futures = [service.stub.Create.future(order(customer_id=customer), timeout=60) for _ in range(calls)]
        refused = calls - CONCURRENT_CALLS
        wait_until(
            f"{refused} calls turned away",
            lambda: sum(call.done() for call in futures) == refused,
            timeout_s=30,
            every_s=0.05,
        )
        wait_for_blocked(service.rig, HANDLER_THREADS)
    ended = [answer(lambda call=call: call.result(60)).code for call in futures]  # type: ignore[misc]
    assert ended.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == refused
    assert ended.count(grpc.StatusCode.OK) == CONCURRENT_CALLS
    assert rows_of(service.rig, customer) == (CONCURRENT_CALLS, CONCURRENT_CALLS)
    assert service.create().code is grpc.StatusCode.OK


def test_a_failed_commit_leaves_neither_order_nor_event(service: Service) -> None:
    customer, key = somebody(), str(uuid.uuid4())
    connection = service.rig.connection
    connection.execute(
        "CREATE FUNCTION refuse_commit() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'the disk is full'; END $$"
    )
    connection.execute(
        "CREATE CONSTRAINT TRIGGER refuse_commit AFTER INSERT ON outbox DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION refuse_commit()"
    )
    try:
        failed = service.create(customer_id=customer, idempotency_key=key)
        assert failed.code is grpc.StatusCode.INTERNAL
        assert "retry" in failed.details
        assert rows_of(service.rig, customer) == (0, 0)
    finally:
        connection.execute("DROP FUNCTION refuse_commit CASCADE")
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
        assert rig.connection.execute("SELECT count(*) FROM orders").fetchone() == (0,)
        assert rig.brewctl("db", "init").returncode == 0
        assert service.create(customer_id=customer).code is grpc.StatusCode.OK
    rig.wait("the order's event in Kafka", lambda: rig.counts().outbox_unpublished == 0)
    assert rows_of(rig, customer) == (1, 1)


# Start and stop


def only_line(text: str) -> str:
    (line,) = text.splitlines()
    return line


def test_a_busy_port_is_one_line_and_the_first_server_goes_on(service: Service) -> None:
    port = service.address.rpartition(":")[2]
    second = service.rig.brewctl("serve", "order", "--port", port, timeout=30)
    assert second.returncode == 1
    line = only_line(second.stderr)
    assert port in line
    assert "--port" in line
    assert second.stdout == ""
    assert service.create().code is grpc.StatusCode.OK


def test_without_tables_it_does_not_start(rig: Rig) -> None:
    rig.connection.execute("DROP TABLE orders, outbox")
    started = rig.brewctl("serve", "order", "--port", "0", timeout=30)
    assert started.returncode == 1
    assert "`brewctl db init`" in only_line(started.stderr)
    assert started.stdout == ""


def test_without_its_topic_it_does_not_start(service: Service) -> None:
    topic = f"{service.rig.settings.topic}-that-nobody-made"
    started = service.rig.brewctl("serve", "order", "--port", "0", "--topic", topic, timeout=30)
    assert started.returncode == 1
    line = only_line(started.stderr)
    assert topic in line
    assert "`brewctl topic create`" in line
    assert started.stdout == ""


def test_sigterm_answers_the_calls_in_hand_and_publishes_their_orders(rig: Rig) -> None:
    node, address = rig.serve()
    customer = somebody()
    with dialled(rig, address) as service:
        with locked_orders(rig):
            calls = [service.stub.Create.future(order(customer_id=customer)) for _ in range(HANDLER_THREADS)]
            wait_for_blocked(rig, HANDLER_THREADS)
            node.process.send_signal(signal.SIGTERM)
            # It drains: who comes now is refused.
            with dialled(rig, address) as late:
                answers: list[Answer] = []

                def refused() -> bool:
                    answers.append(late.create(customer_id="late", timeout=0.5))
                    return answers[-1].code is grpc.StatusCode.UNAVAILABLE

                with contextlib.suppress(TimeoutError):
                    wait_until("a server that refuses new calls", refused, timeout_s=4)
                assert answers[-1].code is grpc.StatusCode.UNAVAILABLE, (answers, node.log.read_text())
        ids = {call.result(30).order_id for call in calls}
    assert node.process.wait(30) == 0
    assert len(ids) == HANDLER_THREADS
    assert rows_of(rig, customer) == (HANDLER_THREADS, HANDLER_THREADS)
    assert rig.counts().outbox_unpublished == 0
