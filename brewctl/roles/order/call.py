"""One call of a client, from its beginning to its end.

No thread waits for a client: neither for its message, nor until it has read its answer. grpcio's own handlers wait for
both, so a few slow clients would stop all others. This module alone knows `grpc._server` (docs/decisions/0011).
"""

import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.message import DecodeError
from grpc import _server
from grpc._cython import cygrpc

from brewctl.probes import heartbeat
from brewctl.roles.order.status import Status

R = TypeVar("R")

_RECEIVE = _server._RECEIVE_MESSAGE_TOKEN  # noqa: SLF001
_SEND = _server._SEND_MESSAGE_TOKEN  # noqa: SLF001
# What a callback of an operation returns to grpcio. All of these run in grpcio's one serving thread.
_Ended = tuple[Any, Any]


# gRPC sends a timeout in steps of up to a hundredth of it, rounded up: a client ends its call a little before the
# deadline that the server knows.
_TIMEOUT_STEP = 0.01
_LEAST_STEP_S = 0.002


class Watcher(Protocol):
    """What a call tells that it waits for its client: the door that it came in by."""

    serving: heartbeat.Loop  # of the thread in which calls begin

    def waits(self, call: "Call", *, for_message: bool) -> None:
        """Note that a call waits for its client from now on: for a message, or until its answer is read."""

    def waits_no_more(self, call: Any) -> None:
        """Note that its client has done what was waited for, or that the call is over."""

    def failed(self, error: Exception) -> None:
        """Log that a call ended by an exception, and why."""


class Call:
    """A call that any thread may answer, once: a second answer is ignored. No method waits."""

    __slots__ = ("_allowed_s", "_door", "_event", "_state", "_until", "at_rest", "context", "tenant")

    def __init__(self, door: Watcher, event: Any, state: Any, *, within_s: float) -> None:
        """Its work may take `within_s` seconds, or until its caller's deadline if that is nearer."""
        self._door = door
        self._event = event
        self._state = state
        # How it ends if no further message comes and its client may leave it at that, as in reflection.
        self.at_rest: Status | None = None
        # The traceparent of its own span, if it has one: written with its order and event.
        self.context: str | None = None
        # The tenant of its token; None if the server asks for no tokens.
        self.tenant: str | None = None
        self._allowed_s = self._remaining_s()
        self._until = time.monotonic() + min(within_s, self._allowed_s)

    @property
    def code(self) -> str:
        """How it ended, in gRPC's words. One that its client ended was cancelled, unless its time was up.

        A client that ends its call at its deadline says no more than one that cancels it.
        """
        if self._state.statused:
            return str((self._state.code or grpc.StatusCode.OK).name)
        late = self._remaining_s() <= max(_LEAST_STEP_S, self._allowed_s * _TIMEOUT_STEP)
        return "DEADLINE_EXCEEDED" if late else "CANCELLED"

    def add_done_callback(self, done: Callable[[object], object]) -> None:
        """Call `done` once the transport has finished with the call."""
        with self._state.condition:
            if self._state.callbacks is not None:
                self._state.callbacks.append(lambda: done(self))
                return
        done(self)

    def metadata(self) -> dict[str, str]:
        """Return the caller's text metadata; of a name that comes twice, the first value."""
        return {key: value for key, value in reversed(self._event.invocation_metadata) if isinstance(value, str)}

    @property
    def active(self) -> bool:
        """Whether it is neither answered nor ended by its caller."""
        return bool(_server._is_rpc_state_active(self._state))  # noqa: SLF001

    def left_s(self) -> float:
        """How many seconds are left for its work; 0 once its caller has ended it."""
        return max(0.0, self._until - time.monotonic()) if self.active else 0.0

    @property
    def given_up(self) -> bool:
        """Whether its caller has ended it, or its deadline has passed."""
        return not self.active or self._remaining_s() <= 0

    def receive(self, then: Callable[[bytes | None], None]) -> None:
        """Receive a message and call `then` with it, in the serving thread; with None if the client sends no more."""
        state = self._state

        def received(event: Any) -> _Ended:
            message = event.batch_operations[0].message()
            with state.condition:
                ended: _Ended = _server._possibly_finish_call(state, _RECEIVE)  # noqa: SLF001
            if self.active:
                self._door.waits_no_more(self)
                self._door.serving.beat()
                self.guarded(lambda: then(message))
                self._door.serving.rest()
            return ended

        with state.condition:
            if not self.active:
                return
            self._door.waits(self, for_message=True)
            self._event.call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), received)
            state.due.add(_RECEIVE)

    def send(self, message: bytes, then: Callable[[], None]) -> None:
        """Send a message of a stream; `then` is called in the serving thread once it was sent. One at a time."""
        state = self._state

        def sent(_event: object) -> _Ended:
            with state.condition:
                ended: _Ended = _server._possibly_finish_call(state, _SEND)  # noqa: SLF001
            if self.active:
                self._door.waits_no_more(self)
                self.guarded(then)
            return ended

        with state.condition:
            if not self.active:
                return
            self._door.waits(self, for_message=False)
            operations = [cygrpc.SendMessageOperation(message, 0)]
            if state.initial_metadata_allowed:
                operations.insert(0, cygrpc.SendInitialMetadataOperation(None, 0))
                state.initial_metadata_allowed = False
            self._event.call.start_server_batch(operations, sent)
            state.due.add(_SEND)

    def answer(self, message: bytes) -> None:
        """End the call with a serialized message."""
        self._end(message)

    def end(self, status: Status) -> None:
        """End the call without a message."""
        with self._state.condition:
            if not self.active:
                return
            self._state.code = status.code
            self._state.details = status.details.encode()
            self._state.trailing_metadata = status.metadata
            self._end(None)

    def cancel(self) -> None:
        """Drop the call and the answer that its client does not read."""
        self._event.call.cancel()

    def guarded(self, step: Callable[[], object]) -> None:
        """Run a step of the call. An exception is logged and ends this call alone."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 - any error concerns this call alone
            self._door.failed(error)
            self.end(Status(grpc.StatusCode.INTERNAL, "this call failed: the log of the replica says why"))

    def _end(self, message: bytes | None) -> None:
        # Message and status together: grpcio's own way to send a message waits until that has left.
        with self._state.condition:
            if not self.active:
                return
            self._door.waits(self, for_message=False)
            _server._status(self._event, self._state, message)  # noqa: SLF001

    def _remaining_s(self) -> float:
        return float(self._event.call_details.deadline) - time.time()


def method(begin: Callable[[Call], None]) -> grpc.RpcMethodHandler:
    """Return a method, of any kind, whose calls `begin` has, in the serving thread."""
    return grpc.stream_stream_rpc_method_handler(begin)


def with_message(parse: Callable[[bytes], R], handle: Callable[[R, Call], object]) -> grpc.RpcMethodHandler:
    """Return a method whose calls bring one message; `handle` is called once that was received."""

    def begin(call: Call) -> None:
        def received(message: bytes | None) -> None:
            if message is None:
                call.end(Status(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message"))
                return
            try:
                request = parse(message)
            except DecodeError:
                call.end(Status(grpc.StatusCode.INVALID_ARGUMENT, "the message can't be read"))
            else:
                handle(request, call)

        call.receive(received)

    return method(begin)


class Interceptor(grpc.ServerInterceptor):  # type: ignore[misc] # grpc has no types
    """Stands before the calls of one service. Calls of other services pass."""

    def __init__(self, methods: str) -> None:
        """`methods`: how the names of the service's methods begin, such as "/brew.OrderService/"."""
        self._methods = methods

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Return the call's method, or what `instead` makes of it."""
        handler = continuation(handler_call_details)
        if handler is None:
            self.unknown()
            return None
        name: str = handler_call_details.method
        return self.instead(name.removeprefix(self._methods), handler) if name.startswith(self._methods) else handler

    def unknown(self) -> None:
        """Note a call of a method that does not exist."""

    def instead(self, name: str, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        """Return what a call of the service's method `name` gets in place of `handler`."""
        raise NotImplementedError
