"""Which calls are let in, how many are in hand, and how the others end.

    call ──► interceptor ──► message ──► admitted ──► in hand, until its Slot is released
                 ├─ stopping?               └─ full? RESOURCE_EXHAUSTED
                 └─ away? UNAVAILABLE, before anything waits for the message

The interceptor stands before the port; `admitted` before the methods of OrderService.
"""

import threading
from collections.abc import Callable
from functools import partial

import grpc

from brewctl.delivery.database.availability import Availability
from brewctl.limits import Limits
from brewctl.roles.order.call import Call, Interceptor, R, method
from brewctl.roles.order.status import Status, retry_later

_AWAY = "the database is away: retry"


class Admission:
    """Bounds the calls in hand to `concurrent_calls`; lets none in while the replica stops or its database is away.

    A call is in hand from its message until its work is done. That may be after its caller's deadline: an order in the
    writer's queue keeps its slot until it is written or dropped.
    """

    def __init__(self, limits: Limits, availability: Availability, stop: threading.Event) -> None:
        later = partial(retry_later, after_s=limits.retry_after_s)
        self._most = limits.concurrent_calls
        self._availability = availability
        self._stop = stop
        self._lock = threading.Lock()
        self._in_hand = 0
        self._kept = _Kept()
        self.stopping = later(grpc.StatusCode.UNAVAILABLE, "this replica is stopping: retry")
        self.away = later(grpc.StatusCode.UNAVAILABLE, _AWAY)
        self._full = later(
            grpc.StatusCode.RESOURCE_EXHAUSTED, f"more than {self._most} calls are in flight: retry later"
        )

    @property
    def in_hand(self) -> int:
        """How many calls have a slot."""
        return self._in_hand

    def enter(self) -> "Slot":
        """Take a slot for an admitted call, when its work is handed on."""
        with self._lock:
            self._in_hand += 1
        return Slot(self._exit)

    def admitted(self, handle: Callable[[R, Call], None]) -> Callable[[R, Call], None]:
        """Return a `handle` that is called only while there is a free slot. Only gRPC's serving thread may call it.

        That one thread alone compares the count and adds to it, so no two calls can take the last slot.
        """

        def admit(request: R, call: Call) -> None:
            if self._in_hand >= self._most:
                call.end(self._full)
            else:
                handle(request, call)

        return admit

    def interceptor(self, methods: str) -> grpc.ServerInterceptor:
        """Return what turns away calls of `methods`, a prefix, before anything waits for their message."""
        return _TurnAway(self, methods)

    def turned_away(self) -> grpc.RpcMethodHandler | None:
        """Return what a new call gets in place of its method; None where it is let in."""
        if self._stop.is_set():
            return method(lambda call: self._kept.keep(call, self.stopping))
        if self._availability.away:
            return method(lambda call: call.end(self.away))
        return None

    def end_kept(self) -> None:
        """End the calls that came while the replica stopped, and from now on each new one at once."""
        self._kept.end(self.stopping)

    def _exit(self) -> None:
        with self._lock:
            self._in_hand -= 1


class Slot:
    """A call's slot among those in hand. A second `release` does nothing."""

    __slots__ = ("_release", "_released")

    def __init__(self, release: Callable[[], None]) -> None:
        self._release = release
        self._released = False

    def release(self) -> None:
        """Give the slot back. Not for two threads at a time."""
        if not self._released:
            self._released = True
            self._release()


class _Kept:
    """Calls that arrive while the server sends GOAWAY. They are refused after it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: list[Call] | None = []

    def keep(self, call: Call, status: Status) -> None:
        with self._lock:
            if self._calls is not None:
                self._calls.append(call)
                return
        call.end(status)

    def end(self, status: Status) -> None:
        with self._lock:
            calls, self._calls = self._calls or [], None
        for call in calls:
            call.end(status)


class _TurnAway(Interceptor):
    """Ends the calls that admission does not let in before anything waits for their message."""

    def __init__(self, admission: Admission, methods: str) -> None:
        super().__init__(methods)
        self._admission = admission

    def instead(self, _name: str, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        """Return the call's own method, or what ends the call."""
        return self._admission.turned_away() or handler
