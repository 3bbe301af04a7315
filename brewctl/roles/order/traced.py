"""A span for each call of the order service, also for one that is refused at once."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import grpc

from brewctl.roles.order.call import Call, Interceptor, method
from brewctl.tracing import in_force

if TYPE_CHECKING:
    from brewctl.tracing.spans import Tracing

# Errors of the server. The other codes are the caller's mistakes, or no errors.
_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


def interceptors(methods: str) -> list[grpc.ServerInterceptor]:
    """Return the interceptor that makes spans of calls whose method begins so; none if there are no traces."""
    return [_Traced(traces, methods)] if (traces := in_force()) else []


class _Traced(Interceptor):
    """Makes a span of each call, from its arrival until the transport has finished with it."""

    def __init__(self, traces: "Tracing", methods: str) -> None:
        super().__init__(methods)
        self._traces = traces
        self._service = methods.removeprefix("/")

    def instead(self, name: str, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        """Return the call's method within a span."""
        go_on: Callable[[Call], None] = handler.stream_stream

        def begin(call: Call) -> None:
            span = self._traces.call(f"{self._service}{name}", call.metadata())
            call.context = span.traceparent

            def end(_call: object) -> None:
                code = grpc.StatusCode[call.code]
                span.end(code.value[0], fault=code.name if code in _FAULTS else "")

            call.add_done_callback(end)
            go_on(call)

        return method(begin)
