"""A span for each call of the order service, also for one that is refused at once."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import grpc

from brewctl.roles.order.call import Call, method
from brewctl.tracing import in_force

if TYPE_CHECKING:
    from brewctl.tracing.spans import Tracing

# The others are the caller's own fault, or no fault at all.
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
    """Return what makes the spans of calls whose method begins so; nothing where no traces are wanted."""
    return [_Traced(traces, methods)] if (traces := in_force()) else []


class _Traced(grpc.ServerInterceptor):  # type: ignore[misc] # grpc has no types
    """Begins a span when a call comes; it ends when the transport has nothing to do with the call any more."""

    def __init__(self, traces: "Tracing", methods: str) -> None:
        self._traces = traces
        self._methods = methods

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Put the span around whatever becomes of a call."""
        handler = continuation(handler_call_details)
        name: str = handler_call_details.method
        if handler is None or not name.startswith(self._methods):
            return handler
        go_on: Callable[[Call], None] = handler.stream_stream

        def begin(call: Call) -> None:
            span = self._traces.call(name[1:], call.metadata())
            call.context = span.traceparent

            def end(_call: object) -> None:
                code = grpc.StatusCode[call.code]
                span.end(code.value[0], fault=code.name if code in _FAULTS else "")

            call.add_done_callback(end)
            go_on(call)

        return method(begin)
