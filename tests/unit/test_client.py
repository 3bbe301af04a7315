"""The client's patience: against gRPC servers on this machine that answer as a script tells them."""

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from brewctl.client import OrderClient, UnknownOutcomeError
from brewctl.errors import BrewError, ExitCode, UnreachableError, UsageError
from brewctl.proto import orders_pb2, orders_pb2_grpc
from tests.order_server import listen

NOWHERE = "127.0.0.1:1"
Code = grpc.StatusCode


class Scripted(orders_pb2_grpc.OrderServiceServicer):
    """Answers with one code after the other, the last one for ever; OK makes one order a key."""

    def __init__(self, *codes: grpc.StatusCode, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self.codes = list(codes)
        self.metadata = metadata
        self.keys: list[str] = []
        self.tenants: list[str] = []
        self.orders: dict[str, str] = {}
        self.cancels: list[tuple[str, str]] = []
        self.status: Any = orders_pb2.ORDER_STATUS_CANCELLED
        self.address = ""
        self.gone = threading.Event()
        self.stop: Callable[[], object] = lambda: None
        self._lock = threading.Lock()

    def Create(self, request: Any, context: Any) -> orders_pb2.CreateResponse:  # noqa: N802 - gRPC's name
        with self._lock:
            self.keys.append(request.idempotency_key)
            self.tenants.append(dict(context.invocation_metadata()).get("x-tenant-id", ""))
            code = self.codes.pop(0) if len(self.codes) > 1 else self.codes[0]
        if code is Code.DEADLINE_EXCEEDED:
            self.gone.wait(20)
        if code is not Code.OK:
            context.set_trailing_metadata(self.metadata)
            context.abort(code, "as it is written")
        order_id = self.orders.setdefault(request.idempotency_key, str(uuid.uuid4()))
        return orders_pb2.CreateResponse(order_id=order_id, status=self.status)

    def Cancel(self, request: Any, context: Any) -> orders_pb2.CancelResponse:  # noqa: N802
        with self._lock:
            self.cancels.append((request.order_id, request.reason))
            code = self.codes.pop(0) if len(self.codes) > 1 else self.codes[0]
        if code is Code.DEADLINE_EXCEEDED:
            self.gone.wait(20)
        if code is not Code.OK:
            context.set_trailing_metadata(self.metadata)
            context.abort(code, "as it is written")
        return orders_pb2.CancelResponse(order_id=request.order_id, status=self.status)


@pytest.fixture
def serve() -> Iterator[Callable[..., Scripted]]:
    with contextlib.ExitStack() as stack:

        def serve(*codes: grpc.StatusCode, metadata: tuple[tuple[str, str], ...] = (), port: int = 0) -> Scripted:
            scripted = Scripted(*codes, metadata=metadata)
            scripted.address, scripted.stop = listen(scripted, port=port)
            stack.callback(scripted.stop)
            stack.callback(scripted.gone.set)
            return scripted

        yield serve


def create(client: OrderClient, **given: str) -> str:
    return client.create("c1", amount_cents=450, currency="EUR", **given)


RETRIED = [Code.UNAVAILABLE, Code.INTERNAL, Code.RESOURCE_EXHAUSTED, Code.CANCELLED, Code.UNKNOWN]


@pytest.mark.parametrize("code", RETRIED)
def test_what_may_end_otherwise_is_retried_with_the_same_key(
    serve: Callable[..., Scripted], code: grpc.StatusCode
) -> None:
    service = serve(code, code, Code.OK)
    why: list[str] = []
    with OrderClient([service.address], on_retry=why.append) as client:
        assert create(client) in service.orders.values()
    assert len(service.keys) == 3
    assert len(set(service.keys)) == 1
    assert len(why) == 2
    assert code.name in why[0]


def test_an_answer_that_does_not_come_is_asked_for_elsewhere(serve: Callable[..., Scripted]) -> None:
    silent, other = serve(Code.DEADLINE_EXCEEDED), serve(Code.OK)
    with OrderClient([silent.address, other.address], timeout_s=60, attempt_s=2) as client:
        assert create(client) in other.orders.values()
    assert silent.keys == other.keys


def test_the_next_address_takes_over_from_one_where_nobody_is(serve: Callable[..., Scripted]) -> None:
    service = serve(Code.OK)
    with OrderClient([NOWHERE, service.address]) as client:
        assert len({create(client) for _ in range(4)}) == 4


@pytest.mark.parametrize("connections", [1, 3])
def test_addresses_take_turns(serve: Callable[..., Scripted], connections: int) -> None:
    services = [serve(Code.OK) for _ in range(2)]
    with OrderClient([service.address for service in services], connections=connections) as client:
        for _ in range(6):
            create(client)
    assert [len(service.keys) for service in services] == [3, 3]


def test_each_order_has_a_key_of_its_own_from_any_thread(serve: Callable[..., Scripted]) -> None:
    service = serve(Code.OK)
    with OrderClient([service.address]) as client, ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: create(client), range(100)))
    assert len(set(ids)) == len(set(service.keys)) == 100
    assert all(service.keys)


def test_a_key_and_a_tenant_are_sent_as_given(serve: Callable[..., Scripted]) -> None:
    service = serve(Code.OK)
    with OrderClient([service.address], tenant="shop-2") as client:
        assert create(client, idempotency_key="k1") == create(client, idempotency_key="k1")
    assert service.keys == ["k1", "k1"]
    assert service.tenants == ["shop-2", "shop-2"]


@pytest.mark.parametrize("tenant", ["ten\nant", "ten\x00ant", "tenänt"])
def test_a_tenant_that_can_not_be_sent_is_misuse(tenant: str) -> None:
    with pytest.raises(UsageError, match="tenant"):
        OrderClient([NOWHERE], tenant=tenant)


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (Code.INVALID_ARGUMENT, ExitCode.USAGE),
        (Code.ALREADY_EXISTS, ExitCode.FAILED),
        (Code.UNIMPLEMENTED, ExitCode.FAILED),
        (Code.PERMISSION_DENIED, ExitCode.FAILED),
        (Code.FAILED_PRECONDITION, ExitCode.FAILED),
    ],
)
def test_an_answer_that_stands_is_not_asked_for_again(
    serve: Callable[..., Scripted], code: grpc.StatusCode, exit_code: ExitCode
) -> None:
    service = serve(code)
    with OrderClient([service.address]) as client, pytest.raises(BrewError, match="as it is written") as refused:
        create(client)
    assert refused.value.exit_code == exit_code
    assert len(service.keys) == 1


def test_a_server_that_says_never_is_not_asked_again(serve: Callable[..., Scripted]) -> None:
    service = serve(Code.INTERNAL, metadata=(("grpc-retry-pushback-ms", "-1"),))
    with OrderClient([service.address]) as client, pytest.raises(BrewError) as refused:
        create(client)
    assert refused.value.exit_code == ExitCode.FAILED
    assert len(service.keys) == 1


def test_a_server_that_says_when_is_not_asked_before(serve: Callable[..., Scripted]) -> None:
    service = serve(Code.UNAVAILABLE, Code.OK, metadata=(("grpc-retry-pushback-ms", "60000"),))
    with OrderClient([service.address], timeout_s=30) as client, pytest.raises(UnreachableError):
        create(client)
    assert len(service.keys) == 1


@pytest.mark.parametrize(
    ("code", "metadata", "known"),
    [
        (Code.RESOURCE_EXHAUSTED, (("grpc-retry-pushback-ms", "60000"),), True),
        (Code.UNAVAILABLE, (("grpc-retry-pushback-ms", "60000"),), True),  # the service's own word: not written
        (Code.UNAVAILABLE, (), False),  # the transport's
        (Code.INTERNAL, (("grpc-retry-pushback-ms", "50"),), False),
        (Code.DEADLINE_EXCEEDED, (), False),
        (Code.CANCELLED, (), False),
    ],
)
def test_when_time_is_up_it_says_whether_the_order_may_exist(
    serve: Callable[..., Scripted], code: grpc.StatusCode, metadata: tuple[tuple[str, str], ...], known: bool
) -> None:
    service = serve(code, metadata=metadata)
    # What is known is known after the first answer, which may take its time.
    timeout_s, attempt_s = (30.0, 20.0) if known else (0.4, 0.2)
    with (
        OrderClient([service.address], tenant="shop", timeout_s=timeout_s, attempt_s=attempt_s) as client,
        pytest.raises(UnreachableError) as failed,
    ):
        client.create("it's me", amount_cents=7, currency="EUR", idempotency_key="k 1")
    assert failed.value.exit_code == ExitCode.UNREACHABLE
    assert isinstance(failed.value, UnknownOutcomeError) is not known
    if isinstance(failed.value, UnknownOutcomeError):
        assert failed.value.idempotency_key == "k 1"
        assert "k 1" in failed.value.message
        command = (
            "brewctl create-order --customer 'it'\"'\"'s me' --amount-cents 7 --currency EUR --tenant shop"
            f" --idempotency-key 'k 1' --addr {service.address}"
        )
        assert f"`{command}`" in failed.value.hint


def test_no_try_begins_where_no_time_is_left_for_its_answer(
    serve: Callable[..., Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would only put in doubt what is known: that nothing was written."""
    monkeypatch.setattr("random.uniform", lambda low, _high: low)
    service = serve(Code.RESOURCE_EXHAUSTED, metadata=(("grpc-retry-pushback-ms", "29950"),))
    with OrderClient([service.address], timeout_s=30) as client, pytest.raises(UnreachableError) as failed:
        create(client)
    assert not isinstance(failed.value, UnknownOutcomeError)
    assert len(service.keys) == 1


def test_one_doubtful_try_leaves_the_outcome_unknown(serve: Callable[..., Scripted]) -> None:
    service = serve(Code.INTERNAL, Code.RESOURCE_EXHAUSTED)
    with OrderClient([service.address], timeout_s=3) as client, pytest.raises(UnknownOutcomeError):
        create(client)
    assert len(service.keys) > 1


def test_where_nobody_ever_was_it_does_not_try_for_long() -> None:
    with OrderClient([NOWHERE, "nowhere.invalid:1"], timeout_s=3600) as client, pytest.raises(UnreachableError) as gone:
        create(client)
    assert not isinstance(gone.value, UnknownOutcomeError)
    assert "BREW_ORDER_ADDRS" in gone.value.hint


def test_where_somebody_was_it_waits_for_the_return(serve: Callable[..., Scripted]) -> None:
    """A replica that restarts is away for longer than a wrong address is believed in."""
    before = serve(Code.OK)
    retries = threading.Semaphore(0)
    with (
        OrderClient([before.address], timeout_s=60, on_retry=lambda _: retries.release()) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        create(client)
        before.stop()
        order = pool.submit(create, client)
        for _ in range(6):  # 2.5 s, with the pauses between them
            assert retries.acquire(timeout=20)
        after = serve(Code.OK, port=int(before.address.rpartition(":")[2]))
        assert order.result(30) in after.orders.values()


@pytest.mark.parametrize("given", [{"customer_id": "\ud800"}, {"currency": "\ud800"}, {"amount_cents": 2**63}])
def test_what_no_request_can_hold_is_misuse(given: dict[str, Any]) -> None:
    with OrderClient([NOWHERE]) as client, pytest.raises(UsageError):
        client.create(**{"customer_id": "c1", "amount_cents": 1, "currency": "EUR", **given})


# Cancel


def test_the_status_of_an_order_that_its_key_made_before_is_told(serve: Callable[..., Scripted]) -> None:
    service = serve(Code.OK)
    with OrderClient([service.address]) as client:
        placed = client.place("c1", amount_cents=450, currency="EUR")
        assert placed == (service.orders.popitem()[1], "ORDER_STATUS_CANCELLED")
        service.status = 99  # of a later version
        assert client.place("c1", amount_cents=450, currency="EUR").status == "ORDER_STATUS_UNSPECIFIED"


@pytest.mark.parametrize("code", RETRIED)
def test_a_cancel_is_retried_as_an_order_is(serve: Callable[..., Scripted], code: grpc.StatusCode) -> None:
    service = serve(code, code, Code.OK)
    with OrderClient([service.address]) as client:
        assert client.cancel("an id", reason="why") == "ORDER_STATUS_CANCELLED"
    assert service.cancels == [("an id", "why")] * 3


@pytest.mark.parametrize(
    ("code", "kind", "exit_code"),
    [
        (Code.NOT_FOUND, BrewError, ExitCode.FAILED),
        (Code.FAILED_PRECONDITION, BrewError, ExitCode.FAILED),
        (Code.UNIMPLEMENTED, BrewError, ExitCode.FAILED),
        (Code.INVALID_ARGUMENT, UsageError, ExitCode.USAGE),
    ],
)
def test_an_answer_to_a_cancel_that_stands_is_not_asked_for_again(
    serve: Callable[..., Scripted], code: grpc.StatusCode, kind: type[BrewError], exit_code: ExitCode
) -> None:
    service = serve(code)
    with OrderClient([service.address]) as client, pytest.raises(kind) as failed:
        client.cancel("an id")
    assert (type(failed.value), failed.value.exit_code) == (kind, exit_code)
    assert len(service.cancels) == 1


def test_a_cancel_without_an_answer_says_how_to_ask_again(serve: Callable[..., Scripted]) -> None:
    service = serve(Code.DEADLINE_EXCEEDED)
    with (
        OrderClient([service.address], timeout_s=0.4, attempt_s=0.2) as client,
        pytest.raises(UnknownOutcomeError) as failed,
    ):
        client.cancel("an-id", reason="no beans")
    assert failed.value.message.startswith("order an-id may be cancelled, or not: order-service ")
    assert f"`brewctl cancel-order an-id --reason 'no beans' --addr {service.address}`" in failed.value.hint
    assert failed.value.exit_code == ExitCode.UNREACHABLE


@pytest.mark.parametrize("given", [{"order_id": "\ud800"}, {"reason": "\ud800"}])
def test_a_cancel_that_no_request_can_hold_is_misuse(given: dict[str, str]) -> None:
    with OrderClient([NOWHERE]) as client, pytest.raises(UsageError):
        client.cancel(**{"order_id": "an id", **given})
