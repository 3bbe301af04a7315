"""An order-service of the tests' own on this machine, whose answers a function gives, and what it was asked."""

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from brewctl.proto import orders_pb2, orders_pb2_grpc

# Is given the number of the call and its context: may wait, or abort.
Handle = Callable[[int, Any], object]


class OrderServer(orders_pb2_grpc.OrderServiceServicer):
    """Counts its calls from 0, and keeps them; its cancels apart."""

    def __init__(self, handle: Handle, cancel: Handle) -> None:
        self.address = ""
        self.requests: list[Any] = []
        self.in_flight_at_most = 0
        self.cancels: list[Any] = []
        self._handle = handle
        self._cancel = cancel
        self._in_flight = 0
        self._lock = threading.Lock()

    def Create(self, request: Any, context: Any) -> orders_pb2.CreateResponse:  # noqa: N802 - gRPC's name
        with self._lock:
            number = len(self.requests)
            self.requests.append(request)
            self._in_flight += 1
            self.in_flight_at_most = max(self.in_flight_at_most, self._in_flight)
        try:
            self._handle(number, context)
        finally:
            with self._lock:
                self._in_flight -= 1
        return orders_pb2.CreateResponse(order_id=str(uuid.uuid4()), status=orders_pb2.ORDER_STATUS_NEW)

    def Cancel(self, request: Any, context: Any) -> orders_pb2.CancelResponse:  # noqa: N802
        with self._lock:
            number = len(self.cancels)
            self.cancels.append(request)
        self._cancel(number, context)
        return orders_pb2.CancelResponse(order_id=request.order_id, status=orders_pb2.ORDER_STATUS_CANCELLED)


@contextlib.contextmanager
def serving(
    handle: Handle = lambda _number, _context: None,
    cancel: Handle = lambda _number, _context: None,
    credentials: grpc.ServerCredentials | None = None,
) -> Iterator[OrderServer]:
    """Serve on a free port, with TLS by `credentials`; `cancel` handles Cancel as `handle` does Create."""
    served = OrderServer(handle, cancel)
    served.address, stop = listen(served, credentials=credentials)
    try:
        yield served
    finally:
        stop()


def listen(
    service: orders_pb2_grpc.OrderServiceServicer, *, port: int = 0, credentials: grpc.ServerCredentials | None = None
) -> tuple[str, Callable[[], object]]:
    """Serve on a free port, or on this one; return the address, and what ends it."""
    server = grpc.server(ThreadPoolExecutor(16))
    orders_pb2_grpc.add_OrderServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    place = f"127.0.0.1:{port}"
    bound = server.add_secure_port(place, credentials) if credentials else server.add_insecure_port(place)
    server.start()
    return f"127.0.0.1:{bound}", lambda: server.stop(0).wait(10)
