"""The floor of Create: a gRPC server whose Create does nothing. `python -m brewctl.lab.bench.empty`."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import grpc

from brewctl.proto import orders_pb2, orders_pb2_grpc
from brewctl.signals import stop_on_signals

_THREADS = 16


class Nothing(orders_pb2_grpc.OrderServiceServicer):
    """Acknowledges every order, and stores nothing."""

    def __init__(self) -> None:
        self._answer = orders_pb2.CreateResponse(order_id=str(uuid.uuid4()), status=orders_pb2.ORDER_STATUS_NEW)

    def Create(self, request: object, context: object) -> orders_pb2.CreateResponse:  # noqa: ARG002, N802
        """Return the same response to every call."""
        return self._answer


def main() -> None:
    """Print the address, and serve until a signal."""
    server = grpc.server(ThreadPoolExecutor(_THREADS))
    orders_pb2_grpc.add_OrderServiceServicer_to_server(Nothing(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    with stop_on_signals() as stop:
        server.start()
        print(f"127.0.0.1:{port}", flush=True)
        stop.wait()
        server.stop(0)


if __name__ == "__main__":
    main()
