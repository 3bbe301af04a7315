"""One call of a client: what it brought along, how long it waits, and its end, which any thread may send."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, ParamSpec, TypeVar

import grpc
from grpc import _server

P = ParamSpec("P")
T = TypeVar("T")


class Status(NamedTuple):
    """How a call ends that is not answered with a message. `metadata` follows it."""

    code: grpc.StatusCode
    details: str
    metadata: tuple[tuple[str, str | bytes], ...] = ()


class Call:
    """A call whose handler may return before it is answered: no thread waits for a commit.

    For grpcio that is a stream of responses with one in it. Its own way to send one waits until that has left,
    which would stop a writer that answers many; what ends a unary call sends message and status together and
    waits for nothing.
    """

    __slots__ = ("_context", "_send", "_until")

    def __init__(self, context: Any, send: Callable[[object], None] | None = None, *, within_s: float) -> None:
        """It is to be answered `within_s` seconds, or before its caller's deadline where that is nearer."""
        self._context = context
        self._send = send
        self._until = time.monotonic() + min(within_s, context.time_remaining())

    def metadata(self) -> dict[str, str]:
        """Return the caller's metadata that are text; of a name that comes twice, the first."""
        return {key: value for key, value in reversed(self._context.invocation_metadata()) if isinstance(value, str)}

    def left_s(self) -> float:
        """How many seconds are left for it: 0 once its caller has gone."""
        return max(0.0, self._until - time.monotonic()) if self._context.is_active() else 0.0

    @property
    def given_up(self) -> bool:
        """Whether its caller waits no more."""
        return not self._context.is_active() or self._context.time_remaining() <= 0

    def answer(self, message: bytes) -> None:
        """End the call with a serialized message."""
        _server._status(self._context._rpc_event, self._context._state, message)  # noqa: SLF001

    def end(self, status: Status) -> None:
        """End the call without a message."""
        assert self._send is not None
        self._context.set_code(status.code)
        self._context.set_details(status.details)
        self._context.set_trailing_metadata(status.metadata)
        self._send(None)


class Calls(ThreadPoolExecutor):
    """Runs handlers, and knows how many it has: queued and running, also those whose client has gone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lock = threading.Lock()
        self.in_hand = 0

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a call, and count it until it is done."""
        future = super().submit(fn, *args, **kwargs)
        with self._lock:
            self.in_hand += 1
        future.add_done_callback(self._done)
        return future

    def _done(self, _future: Future[Any]) -> None:
        with self._lock:
            self.in_hand -= 1
