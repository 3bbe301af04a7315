"""The gRPC server: one port, what is let in, and who answers what.

call ──► admission ──► calls: a bounded queue, handler_threads threads ──► OrderService ──► writer
             ├───────► aside: refusals, health           answered while every handler is blocked
             └───────► reflection: streams that may stay open
"""

import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from brewctl.config import Settings
from brewctl.delivery.watch import Watch
from brewctl.errors import PortError
from brewctl.proto import orders_pb2
from brewctl.roles.order import service
from brewctl.roles.order.call import Call

P = ParamSpec("P")
T = TypeVar("T")

# Above the request bound, so that a large request is answered INVALID_ARGUMENT with the reason.
_TRANSPORT_BYTES = 5 * 1024 * 1024
_METHODS = f"/{service.NAME}/"


class Server:
    """Serves from its construction on."""

    def __init__(
        self,
        settings: Settings,
        orders: service.OrderService,
        watch: Watch,
        stop: threading.Event,
        *,
        host: str,
        port: int,
        share_port: bool,
    ) -> None:
        """Listen; `port` 0 takes a free one. Raises PortError where it can't be had."""
        limits = settings.limits
        aside = ThreadPoolExecutor(limits.aside_threads, thread_name_prefix="aside")
        streams = ThreadPoolExecutor(limits.aside_threads, thread_name_prefix="reflection")
        self._linger_s = limits.linger_s
        self._left = threading.Event()
        self._server = grpc.server(
            orders.calls,
            interceptors=[_Admission(settings, orders, watch, aside, stop=stop, left=self._left)],
            maximum_concurrent_rpcs=limits.transport_calls,
            options=[
                # On by default: a second server on the port would start, and steal half of the calls.
                ("grpc.so_reuseport", int(share_port)),
                ("grpc.max_receive_message_length", _TRANSPORT_BYTES),
                # A client that is paused while it sends would keep a handler for ever.
                ("grpc.keepalive_time_ms", int(limits.client_silence_s * 1000)),
                # Bounds every ping, also the ones that gRPC measures bandwidth with: while one of those is
                # unanswered, no other is sent, and keepalive's own timeout does not count.
                ("grpc.http2.ping_timeout_ms", int(limits.client_silence_s * 1000)),
            ],
        )
        handlers = _handlers(orders, within_s=limits.create_s)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.NAME, handlers),))
        self._server.add_registered_method_handlers(service.NAME, handlers)
        self._health = health.HealthServicer(experimental_thread_pool=aside)
        self._health.Check = _in_pool(aside, self._health.Check)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflected = reflection.ReflectionServicer((service.NAME, health.SERVICE_NAME, reflection.SERVICE_NAME))
        reflected.ServerReflectionInfo = _in_pool(streams, reflected.ServerReflectionInfo)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflected, self._server)
        try:
            bound = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError:
            bound = 0
        if not bound:
            raise PortError(host, port)
        self._server.start()
        self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        self.tell_health(there=True)
        self.address = f"{host}:{bound}"

    def tell_health(self, there: bool) -> None:
        """Answer health checks of the service, not of the process: restarting that would not bring a database back."""
        status = health_pb2.HealthCheckResponse
        self._health.set(service.NAME, status.SERVING if there else status.NOT_SERVING)

    def drain(self, within_s: float) -> None:
        """Refuse new calls and wait, at most `within_s` seconds, for the ones in hand."""
        self._health.enter_graceful_shutdown()
        # gRPC cancels, without a word, the calls that come while it says goodbye. So those of the last moment are
        # kept, and refused after it: who is told to retry must not come back in between.
        time.sleep(self._linger_s)
        stopped = self._server.stop(within_s)
        self._left.set()
        stopped.wait(within_s)


class _Admission(grpc.ServerInterceptor):  # type: ignore[misc] # grpc has no types
    """Turns a call away before it is queued. Runs in the one thread that also queues: its count can't be outrun."""

    def __init__(
        self,
        settings: Settings,
        orders: service.OrderService,
        watch: Watch,
        aside: ThreadPoolExecutor,
        *,
        stop: threading.Event,
        left: threading.Event,
    ) -> None:
        limits = settings.limits
        self._bound = limits.concurrent_calls
        self._orders = orders
        self._watch = watch
        self._stop = stop

        def refusal(code: grpc.StatusCode, details: str) -> grpc.RpcMethodHandler:
            status = service.retry_later(code, details, after_s=limits.retry_after_s)

            def refuse(_requests: object, context: grpc.ServicerContext) -> None:
                if stop.is_set():
                    left.wait(limits.drain_s)
                service.abort(context, status)

            # As a stream of requests: nobody waits for a message that is not needed.
            return grpc.stream_unary_rpc_method_handler(_in_pool(aside, refuse))

        self._stopping = refusal(grpc.StatusCode.UNAVAILABLE, "this replica is stopping: retry")
        self._away = refusal(grpc.StatusCode.UNAVAILABLE, service.AWAY)
        self._full = refusal(
            grpc.StatusCode.RESOURCE_EXHAUSTED, f"more than {self._bound} calls are in flight: retry later"
        )

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Choose who answers a call."""
        handler = continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(_METHODS):
            return handler
        if self._stop.is_set():
            return self._stopping
        if self._watch.away:
            return self._away
        if self._orders.in_hand >= self._bound:
            return self._full
        return handler


def _handlers(orders: service.OrderService, *, within_s: float) -> dict[str, grpc.RpcMethodHandler]:
    def create(
        request: orders_pb2.CreateRequest, context: grpc.ServicerContext, send: Callable[[object], None]
    ) -> None:
        orders.create(request, Call(context, send, within_s=within_s))

    create.experimental_non_blocking = True  # type: ignore[attr-defined] # as grpcio's own health service does
    return {
        "Create": grpc.unary_stream_rpc_method_handler(
            create, orders_pb2.CreateRequest.FromString, orders_pb2.CreateResponse.SerializeToString
        ),
        "Get": grpc.unary_unary_rpc_method_handler(
            orders.get, orders_pb2.GetRequest.FromString, orders_pb2.GetResponse.SerializeToString
        ),
    }


def _in_pool(pool: ThreadPoolExecutor, method: Callable[P, T]) -> Callable[P, T]:
    """Let `pool` run a handler, by the attribute that grpcio looks for."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return method(*args, **kwargs)

    call.experimental_thread_pool = pool  # type: ignore[attr-defined]
    return call
