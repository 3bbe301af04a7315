"""The gRPC server: one port, what is let in, and which part answers what.

call ──► interceptors ──► door ──message──► admission ──► OrderService ──► writer, or a thread that reads or cancels
             │              ├─────────────► health, reflection: answered in the serving thread, they wait for nothing
             └─ refused     └─ ended: its message does not come
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import grpc

from brewctl import metrics
from brewctl.config import Settings
from brewctl.errors import PortError
from brewctl.proto import orders_pb2
from brewctl.roles.order import health, reflection, service, traced
from brewctl.roles.order.admission import Admission
from brewctl.roles.order.call import Call, method, with_message
from brewctl.roles.order.door import Door
from brewctl.roles.order.health import Health
from brewctl.roles.order.reflection import Reflection
from brewctl.roles.order.status import Status, retry_later

# Above the request bound, so that a large request is answered INVALID_ARGUMENT with the reason.
_TRANSPORT_BYTES = 5 * 1024 * 1024
_METHODS = f"/{service.NAME}/"


class Guard(NamedTuple):
    """What stands before the port: a certificate, and what looks at each call before it is let in."""

    credentials: grpc.ServerCredentials | None = None
    interceptors: Sequence[grpc.ServerInterceptor] = ()


OPEN = Guard()


class Server:
    """Serves from its construction on."""

    def __init__(
        self,
        settings: Settings,
        orders: service.OrderService,
        admission: Admission,
        *,
        host: str,
        port: int,
        share_port: bool,
        guard: Guard = OPEN,
    ) -> None:
        """Listen; `port` 0 takes a free one. Raises PortError where it can't be had."""
        limits = settings.limits
        self._linger_s = limits.linger_s
        self._admission = admission

        def crowded(details: str) -> Status:
            return retry_later(grpc.StatusCode.RESOURCE_EXHAUSTED, details, after_s=limits.retry_after_s)

        self._door = Door(
            limits, full=crowded(f"more than {limits.waiting_calls} calls wait for their clients: retry later")
        )
        calls = metrics.calls()
        self._server = grpc.server(
            self._door,
            interceptors=[
                *traced.interceptors(_METHODS),
                *([_Counting(calls)] if calls else []),
                *guard.interceptors,
                admission.interceptor(_METHODS),
            ],
            maximum_concurrent_rpcs=limits.transport_calls,
            options=[
                # On by default: a second server on the port would start, and steal half of the calls.
                ("grpc.so_reuseport", int(share_port)),
                ("grpc.max_receive_message_length", _TRANSPORT_BYTES),
                # A client that is paused, or gone without a goodbye, would keep its connection for ever.
                ("grpc.keepalive_time_ms", int(limits.client_silence_s * 1000)),
                ("grpc.keepalive_permit_without_calls", 1),
                # Bounds every ping, also the ones that gRPC measures bandwidth with: while one of those is
                # unanswered, no other is sent, and keepalive's own timeout does not count.
                ("grpc.http2.ping_timeout_ms", int(limits.client_silence_s * 1000)),
                *([_aging(limits.connection_age_s)] if share_port else []),
            ],
        )
        self._add(
            service.NAME,
            {
                "Create": with_message(orders_pb2.CreateRequest.FromString, admission.admitted(orders.create)),
                "Cancel": with_message(orders_pb2.CancelRequest.FromString, admission.admitted(orders.cancel)),
                "Get": with_message(orders_pb2.GetRequest.FromString, admission.admitted(orders.get)),
            },
        )
        self._health = Health(
            most=limits.health_watchers,
            full=crowded(f"more than {limits.health_watchers} clients watch: retry later"),
        )
        self._add(health.NAME, self._health.methods)
        self._add(reflection.NAME, Reflection((service.NAME, health.NAME, reflection.NAME)).methods)
        try:
            bound = (
                self._server.add_insecure_port(f"{host}:{port}")
                if guard.credentials is None
                else self._server.add_secure_port(f"{host}:{port}", guard.credentials)
            )
        except RuntimeError:
            bound = 0
        if not bound:
            self._door.close()
            raise PortError(host, port)
        self._health.set("", serving=True)
        self.tell_health(there=True)
        self._server.start()
        self.address = f"{host}:{bound}"

    def _add(self, name: str, methods: Mapping[str, grpc.RpcMethodHandler]) -> None:
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, methods),))
        self._server.add_registered_method_handlers(name, methods)

    def tell_health(self, there: bool) -> None:
        """Answer health checks of the service, not of the process: restarting that would not bring a database back."""
        self._health.set(service.NAME, serving=there)

    @property
    def watchers(self) -> int:
        """How many clients watch the health of a service."""
        return self._health.watchers

    def drain(self, within_s: float) -> None:
        """Refuse new calls and wait, at most `within_s` seconds, for the ones in hand."""
        self._health.stop()
        # gRPC cancels, without a word, the calls that come while it says goodbye. So those of the last moment are
        # kept, and refused after it: a client that is told to retry must not come back in between.
        time.sleep(self._linger_s)
        stopped = self._server.stop(within_s)
        self._admission.end_kept()
        self._door.refuse(self._admission.stopping)
        self._health.end_watches(self._admission.stopping)
        stopped.wait(within_s)
        self._door.close()


class _Counting(grpc.ServerInterceptor):  # type: ignore[misc] # grpc has no types
    """Counts and times the calls of the service, also those that are turned away; not those of health."""

    def __init__(self, calls: metrics.Calls) -> None:
        self._calls = calls

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Add to a call's end that it is counted."""
        handler = continuation(handler_call_details)
        if handler is None:
            self._calls.unknown()  # whatever the client called it, it is one label
            return None
        if not handler_call_details.method.startswith(_METHODS):
            return handler
        name, handle = handler_call_details.method.removeprefix(_METHODS), handler.stream_stream

        def begin(call: Call) -> None:
            began = time.monotonic()
            call.add_done_callback(lambda _: self._calls.ended(name, call.code, time.monotonic() - began))
            handle(call)

        return method(begin)


def _aging(age_s: float) -> tuple[str, int]:
    """Let clients connect again now and then, so that processes that share a port get their shares, whenever started.

    A lone process would get each connection back. gRPC varies the age by a tenth, and says goodbye in two steps, so
    that a client loses no call, unless it has switched off gRPC's own retries. Calls in flight and watches of health go
    on until they end, without a limit.
    """
    return "grpc.max_connection_age_ms", int(age_s * 1000)
