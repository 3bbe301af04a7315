"""The gRPC server: one port, what stands before it, and which part answers which call.

call ──► interceptors ──► door ──message──► admission ──► OrderService ──► writer, or a thread that reads or cancels
             │              ├─────────────► health, reflection: answered in the serving thread, they wait for nothing
             └─ refused     └─ ended: its message does not come
"""

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import grpc

from brewctl import metrics
from brewctl.config import Settings
from brewctl.errors import PortError
from brewctl.proto import orders_pb2
from brewctl.roles.order import health, reflection, service, traced
from brewctl.roles.order.admission import Admission
from brewctl.roles.order.call import Call, Interceptor, method, with_message
from brewctl.roles.order.door import Door
from brewctl.roles.order.health import HealthService
from brewctl.roles.order.reflection import Reflection
from brewctl.roles.order.status import Status, retry_later

# Above the request bound, so that a large request is answered INVALID_ARGUMENT with the reason.
_TRANSPORT_BYTES = 5 * 1024 * 1024
_METHODS = f"/{service.NAME}/"


class Guard(NamedTuple):
    """What stands before the port: a certificate, and interceptors that look at each call."""

    credentials: grpc.ServerCredentials | None = None
    interceptors: Sequence[grpc.ServerInterceptor] = ()


OPEN = Guard()


class OrderServer:
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
        """Listen on a port; 0 takes a free one. Raises PortError if it can't be listened on."""
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
                # gRPC's default is 1: a second server on the port would start and get half of the calls.
                ("grpc.so_reuseport", int(share_port)),
                ("grpc.max_receive_message_length", _TRANSPORT_BYTES),
                # A client that is paused, or lost without a FIN, would keep its connection for ever.
                ("grpc.keepalive_time_ms", int(limits.client_silence_s * 1000)),
                ("grpc.keepalive_permit_without_calls", 1),
                # For every ping, also those that gRPC measures bandwidth with. While one of these is unanswered no
                # keepalive ping is sent, and keepalive's own timeout does not apply.
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
        self._health = HealthService(
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
        """Set the service's health by whether the database is there. The process's own stays: a restart won't help."""
        self._health.set(service.NAME, serving=there)

    @property
    def watchers(self) -> int:
        """How many clients watch a service's health."""
        return self._health.watchers

    def drain(self, within_s: float) -> None:
        """Refuse new calls, and wait at most `within_s` seconds for those in hand."""
        self._health.stop()
        # gRPC cancels the calls that arrive while it sends GOAWAY, without a status. So calls of that moment are kept
        # and refused after it: a client that was told to retry earlier would come back in between.
        time.sleep(self._linger_s)
        stopped = self._server.stop(within_s)
        self._admission.end_kept()
        self._door.refuse(self._admission.stopping)
        self._health.end_watches(self._admission.stopping)
        stopped.wait(within_s)
        self._door.close()


class _Counting(Interceptor):
    """Counts and times the service's calls, also those that are refused; not those of health."""

    def __init__(self, calls: metrics.Calls) -> None:
        super().__init__(_METHODS)
        self._calls = calls

    def unknown(self) -> None:
        """Count a call of an unknown method: one label for all of their names."""
        self._calls.unknown()

    def instead(self, name: str, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        """Return the call's method, counted at its end."""
        handle = handler.stream_stream

        def begin(call: Call) -> None:
            began = time.monotonic()
            call.add_done_callback(lambda _: self._calls.ended(name, call.code, time.monotonic() - began))
            handle(call)

        return method(begin)


def _aging(age_s: float) -> tuple[str, int]:
    """Return the option that ends old connections, so that clients spread over all processes that share the port.

    A process that is alone on its port needs no such option: it would get each connection back. gRPC varies the age by
    a tenth and sends GOAWAY twice, so a client loses no call, unless it has switched off gRPC's own retries. Calls in
    flight and health watches go on until they end.
    """
    return "grpc.max_connection_age_ms", int(age_s * 1000)
