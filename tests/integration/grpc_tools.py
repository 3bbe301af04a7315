"""A client of order-service as other teams write one, and what it left in the database."""

import contextlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc
import psycopg
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from brewctl.lifecycle import wait_until
from brewctl.proto import orders_pb2, orders_pb2_grpc
from tests.conftest import Rig

SERVICE = "brew.orders.v1.OrderService"
CONCURRENT_CALLS = 256
SEVERAL = 16
RETRY_AFTER_S = (0.5, 0.5)
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


class Answer(NamedTuple):
    """How a call ended."""

    code: grpc.StatusCode
    details: str
    response: Any
    # What the server says about a retry: google.rpc.RetryInfo, and gRPC's own pushback.
    retry_after_s: tuple[float | None, float | None] = (None, None)


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

    def cancel(
        self, order_id: str, reason: str = "", *, metadata: tuple[tuple[str, str], ...] = (), timeout: float = 30
    ) -> Answer:
        request = orders_pb2.CancelRequest(order_id=order_id, reason=reason)
        return answer(lambda: self.stub.Cancel(request, metadata=metadata, timeout=timeout))

    def get(self, order_id: str) -> Answer:
        return answer(lambda: self.stub.Get(orders_pb2.GetRequest(order_id=order_id), timeout=30))

    def health(self, name: str = SERVICE) -> Answer:
        stub = health_pb2_grpc.HealthStub(self.channel)
        return answer(lambda: stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=30))


def order(**fields: Any) -> orders_pb2.CreateRequest:
    return orders_pb2.CreateRequest(**{"customer_id": "alice", "amount_cents": 450, "currency": "EUR", **fields})


def answer(call: Callable[[], Any]) -> Answer:
    try:
        return Answer(grpc.StatusCode.OK, "", call())
    except grpc.RpcError as error:
        return Answer(error.code(), error.details(), None, retry_after_s(error))


def retry_after_s(error: Any) -> tuple[float | None, float | None]:
    info, delay = error_details_pb2.RetryInfo(), None
    if status := rpc_status.from_call(error):
        (detail,) = status.details
        assert detail.Unpack(info)
        delay = info.retry_delay.ToMilliseconds() / 1000
    pushback = dict(error.trailing_metadata() or ()).get("grpc-retry-pushback-ms")
    return delay, None if pushback is None else int(pushback) / 1000


@contextlib.contextmanager
def dialled(rig: Rig, address: str) -> Iterator[Service]:
    with grpc.insecure_channel(address) as channel:
        yield Service(rig, address, channel)


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


@contextlib.contextmanager
def taken_key(rig: Rig, key: str) -> Iterator[None]:
    """Another session has written an order with this key and has not committed it."""
    with psycopg.connect(rig.settings.database_url) as other:
        other.execute(
            "INSERT INTO orders (id, tenant_id, customer_id, amount_cents, currency, status, idempotency_key)"
            " VALUES (gen_random_uuid(), 'brew', 'other', 1, 'EUR', 'ORDER_STATUS_NEW', %s)",
            (key,),
        )
        yield
        other.rollback()


def wait_for_blocked(rig: Rig, sessions: int) -> None:
    """Wait until so many sessions, or more, stand in front of the locked table; of 0, until none does."""
    waiting = (
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'orders'::regclass"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )

    def blocked() -> bool:
        ((count,),) = rig.connection.execute(waiting).fetchall()
        assert isinstance(count, int)
        return count >= sessions if sessions else count == 0

    wait_until(f"{sessions} sessions at the lock", blocked, timeout_s=20, every_s=0.02)


def knows_of(service: Service) -> None:
    """Wait until the service has taken what was sent before, also the end of a call.

    What a connection carries stays in order, so whatever is answered now came after that.
    """
    assert service.health("").code is grpc.StatusCode.OK


# A failure of PostgreSQL itself, which says nothing about the order.
BROKEN = "RAISE EXCEPTION 'a page is torn' USING ERRCODE = 'data_corrupted'"


@contextlib.contextmanager
def failing(rig: Rig, action: str, *, at_commit: bool) -> Iterator[None]:
    """Whatever is written to the outbox fails so: at once, or when it is committed."""
    rig.connection.execute(
        f"CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {action}; RETURN NULL; END $$"
    )
    kind, deferred = ("CONSTRAINT TRIGGER", "DEFERRABLE INITIALLY DEFERRED") if at_commit else ("TRIGGER", "")
    rig.connection.execute(f"CREATE {kind} fail AFTER INSERT ON outbox {deferred} FOR EACH ROW EXECUTE FUNCTION fail()")
    try:
        yield
    finally:
        # The rig's own session waits 2 s for a lock at most, as roles do: the trigger must go, however busy the table.
        with psycopg.connect(rig.settings.database_url, autocommit=True) as connection:
            connection.execute("DROP FUNCTION fail CASCADE")
