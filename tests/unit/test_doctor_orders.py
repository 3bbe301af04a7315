"""What `brewctl doctor` says of an order-service that answers health checks, by how it answers calls."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from brewctl.doctor import Verdict, orders
from brewctl.proto import orders_pb2, orders_pb2_grpc


@contextlib.contextmanager
def healthy(get: Callable[[Any], None]) -> Iterator[str]:
    """An order-service that says it serves; `get` is what it does with a read."""

    class Orders(orders_pb2_grpc.OrderServiceServicer):
        def Get(self, _request: Any, context: Any) -> orders_pb2.GetResponse:  # noqa: N802 - gRPC's name
            get(context)
            return orders_pb2.GetResponse()

    server = grpc.server(ThreadPoolExecutor(4))
    orders_pb2_grpc.add_OrderServiceServicer_to_server(Orders(), server)  # type: ignore[no-untyped-call]
    known = health.HealthServicer()
    known.set("brew.orders.v1.OrderService", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(known, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait(10)


@pytest.mark.parametrize(
    ("code", "verdict", "said"),
    [
        (grpc.StatusCode.NOT_FOUND, Verdict.OK, "SERVING, and answers calls"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Verdict.WARN, "turns calls away (so it is)"),
        (grpc.StatusCode.INTERNAL, Verdict.FAIL, "answers calls INTERNAL (so it is)"),
        (grpc.StatusCode.UNAVAILABLE, Verdict.FAIL, "answers calls UNAVAILABLE (so it is)"),
    ],
)
def test_a_service_that_serves_is_asked_for_an_order(code: grpc.StatusCode, verdict: Verdict, said: str) -> None:
    with healthy(lambda context: context.abort(code, "so it is")) as address:
        (finding,) = orders.check(address)
    assert finding.verdict is verdict
    assert said in finding.found
    assert bool(finding.mend) is (verdict is not Verdict.OK)


def test_a_service_that_says_it_serves_and_answers_no_call() -> None:
    over = threading.Event()
    with healthy(lambda _context: print(over.wait(60))) as address:
        (finding,) = orders.check(address)
        over.set()
    assert finding.verdict is Verdict.FAIL
    assert "answers no call within" in finding.found
