"""A client of order-service. It retries each call until an answer or a timeout; the call takes effect only once."""

import itertools
import math
import shlex
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import grpc

from brewctl.client.channels import DIRECT, Line, Lines, Metadata
from brewctl.client.failed_call import Failure
from brewctl.errors import UnreachableError, UsageError
from brewctl.proto import orders_pb2, orders_pb2_grpc
from brewctl.security import PLAINTEXT, OrderSecurity

if TYPE_CHECKING:
    from brewctl.client.handshake import Cause

_CHANNEL = [
    # A replica that was restarted is connected to within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # In spite of its name this is the timeout of one connection attempt.
    ("grpc.min_reconnect_backoff_ms", 2000),
    *DIRECT,
]
# If no address ever accepted a connection, the addresses are probably wrong: calls fail after this time.
_REFUSED_S = 2.0
# No try with less time than this: it would hardly be answered, and would make a known outcome unknown.
_SHORTEST_TRY_S = 0.1
# The most time to find out why a connection failed.
_HANDSHAKE_S = 2.0


class UnknownOutcomeError(UnreachableError):
    """The order or cancel may have been committed, but no answer came. The same call again settles it.

    `reason`: why no answer came. `idempotency_key`: the order's, to be used again; empty for a cancel.
    """

    def __init__(self, message: str, *, hint: str, reason: str, idempotency_key: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
        self.idempotency_key = idempotency_key


class Placed(NamedTuple):
    """An order's id and the name of its status: an order that already existed may be cancelled by now."""

    order_id: str
    status: str


class OrderClient:
    """Calls order-service round robin, from any number of threads. Use it as a context manager.

    A call is tried at one address after the other, for `timeout_s` seconds in all and at most `attempt_s` each. It
    takes effect once, however many tries arrive. `on_retry` is called with the reason before each retry.

    `connections`: how many each address gets. A thread keeps to one of them; the threads take them in turn. One serves
    any number of threads, but only one process: to reach all of `serve order --workers`, use as many.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        tenant: str = "",
        timeout_s: float = 10.0,
        attempt_s: float = 5.0,
        on_retry: Callable[[str], None] | None = None,
        connections: int = 1,
        security: OrderSecurity = PLAINTEXT,
    ) -> None:
        """Prepare the channels; the first call connects.

        `tenant` is sent as x-tenant-id; empty: the service's default, or the token's. Raises UsageError for a tenant
        that can't be sent, and for `security` that can't be used.
        """
        if not (tenant.isascii() and tenant.isprintable()):
            raise UsageError(f"tenant {tenant[:80]!r} can't be sent", hint="use letters, digits, '.', '_', '-'")
        self._addresses = addresses
        self._tenant = tenant
        self._timeout_s = timeout_s
        self._attempt_s = attempt_s
        self._on_retry = on_retry
        # gRPC shares one connection among all channels to an address, unless each channel has a pool of its own.
        options = [*_CHANNEL, ("grpc.use_local_subchannel_pool", int(connections > 1))]
        self._security = security
        self._lines = Lines(addresses, security, options=options, connections=connections, longest_call_s=attempt_s)
        self._tenant_metadata = (("x-tenant-id", tenant),) if tenant else ()
        self._used = self._on(self._lines.line)
        self._asking = threading.Lock()
        self._causes: dict[str, tuple[float, Cause | None]] = {}  # address → when it was last probed, and the result
        self._turns = itertools.count()
        self._threads = itertools.count()
        self._of_thread = threading.local()
        self._met = threading.Event()  # set once an address accepted a connection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()

    def create(self, customer_id: str, *, amount_cents: int, currency: str, idempotency_key: str = "") -> str:
        """Create an order as `place` does; return its id."""
        return self.place(
            customer_id, amount_cents=amount_cents, currency=currency, idempotency_key=idempotency_key
        ).order_id

    def place(self, customer_id: str, *, amount_cents: int, currency: str, idempotency_key: str = "") -> Placed:
        """Create an order, or find the one that was created with this key before (default: a new key).

        Raises UsageError for bad input; BrewError for another answer that no retry changes, such as a key that was used
        for another order. After the timeout: UnreachableError if surely nothing was written, else UnknownOutcomeError.
        """
        try:
            request = orders_pb2.CreateRequest(
                customer_id=customer_id,
                amount_cents=amount_cents,
                currency=currency,
                idempotency_key=idempotency_key or uuid.uuid4().hex,
            )
        except UnicodeEncodeError:
            raise UsageError("customer, currency and idempotency key must be valid UTF-8") from None
        except ValueError:
            raise UsageError(f"amount_cents must be 1 to 10^12, not {amount_cents}") from None
        response = self._answer("Create", request, lambda failure: self._unknown_order(failure, request))
        return Placed(str(response.order_id), _status(response))

    def cancel(self, order_id: str, *, reason: str = "") -> str:
        """Cancel an order; return the name of its status. To cancel a cancelled order is no error.

        Raises UsageError for bad input; BrewError for another answer that no retry changes, such as an unknown order.
        After the timeout: UnreachableError if surely nothing was written, else UnknownOutcomeError.
        """
        try:
            request = orders_pb2.CancelRequest(order_id=order_id, reason=reason)
        except UnicodeEncodeError:
            raise UsageError("order id and reason must be valid UTF-8") from None
        return _status(self._answer("Cancel", request, lambda failure: self._unknown_cancel(failure, request)))

    def _answer(self, method: str, request: Any, unknown: Callable[[Failure], UnknownOutcomeError]) -> Any:
        """Call a method, retry if another try may succeed, and return its response."""
        started, first, doubtful = time.monotonic(), next(self._turns), False
        hopeless = set()  # addresses
        for tries in itertools.count(1):
            left_s = started + self._timeout_s - time.monotonic()
            outcome = self._try(
                method, (first + tries - 1) % len(self._addresses), request, min(self._attempt_s, left_s)
            )
            if not isinstance(outcome, Failure):
                return outcome
            doubtful = doubtful or outcome.doubtful
            if outcome.cause:
                hopeless.add(outcome.address)
            elif outcome.renewed:
                hopeless.clear()
            pause_s = outcome.pause_s(rounds=tries // len(self._addresses), within=tries % len(self._addresses) > 0)
            bound_s = self._timeout_s if self._met.is_set() else min(self._timeout_s, _REFUSED_S)
            out_of_time = time.monotonic() + pause_s + _SHORTEST_TRY_S > started + bound_s
            if out_of_time or not outcome.worth_a_retry or len(hopeless) == len(set(self._addresses)):
                raise unknown(outcome) if doubtful and outcome.settles_nothing else outcome.error()
            if self._on_retry:
                self._on_retry(outcome.text)
            time.sleep(pause_s)
        raise AssertionError  # count() does not end

    def _try(self, method: str, at: int, request: Any, timeout_s: float) -> Any:
        line, stubs, metadata = self._line()
        began = time.monotonic()
        try:
            response = getattr(self._stub(stubs, at), method)(request, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            failure = Failure(error, self._addresses[at])
            if failure.of_security:
                failure.renewed = self._lines.look(now=True) is not line
            if failure.handshake_failed and not failure.renewed:
                failure.cause = self._cause(failure.address, began, timeout_s)
            if not failure.not_there:
                self._met.set()
            return failure
        self._met.set()
        return response

    def _line(self) -> "_Used":
        """Return the stubs and metadata for a call. They are renewed if a certificate's or token's file has changed."""
        used = self._used
        if (line := self._lines.look()) is not used.line:
            used = self._used = self._on(line)
        return used

    def _on(self, line: Line) -> "_Used":
        stubs = [orders_pb2_grpc.OrderServiceStub(channel) for channel in line.channels]
        return _Used(line, stubs, (*self._tenant_metadata, *line.metadata))

    def _cause(self, address: str, began: float, timeout_s: float) -> "Cause | None":
        """Return why a try got no connection, if TLS is the cause. Of concurrent threads only one asks the server.

        It takes at most the time that the try had left, so that a silent server costs no second timeout.
        """
        from brewctl.client import handshake  # noqa: PLC0415 - only after a failed connection

        if refusal := self._lines.refusal:
            return handshake.Cause(f"is not connected to: {refusal.message}", refusal.hint)
        within_s = min(_HANDSHAKE_S, began + timeout_s - time.monotonic())
        if within_s <= 0 or not self._asking.acquire(timeout=within_s):
            return None
        try:
            asked_at, cause = self._causes.get(address, (-math.inf, None))
            if asked_at < began:
                asked_at = time.monotonic()
                cause = handshake.why_not(address, self._security, within_s=within_s)
                self._causes[address] = asked_at, cause
            return cause
        finally:
            self._asking.release()

    def _stub(self, stubs: Sequence[Any], at: int) -> Any:
        """Return this thread's own stub for an address."""
        try:
            number = self._of_thread.number
        except AttributeError:
            number = self._of_thread.number = next(self._threads)
        return stubs[(number * len(self._addresses) + at) % len(stubs)]

    def _unknown_cancel(self, failure: Failure, request: orders_pb2.CancelRequest) -> UnknownOutcomeError:
        words = ["brewctl", "cancel-order", request.order_id]
        words += ["--reason", request.reason] if request.reason else []
        words += [word for address in self._addresses for word in ("--addr", address)]
        return UnknownOutcomeError(
            f"order {request.order_id} may be cancelled, or not: {failure.text}",
            hint=f"ask again with `{shlex.join(words)}`",
            reason=failure.text,
        )

    def _unknown_order(self, failure: Failure, request: orders_pb2.CreateRequest) -> UnknownOutcomeError:
        asked = {
            "--customer": request.customer_id,
            "--amount-cents": str(request.amount_cents),
            "--currency": request.currency,
            "--tenant": self._tenant,
            "--idempotency-key": request.idempotency_key,
        }
        words = [word for pair in asked.items() if pair[1] for word in pair]
        words += [word for address in self._addresses for word in ("--addr", address)]
        command = shlex.join(["brewctl", "create-order", *words])
        return UnknownOutcomeError(
            f"the order with the idempotency key {request.idempotency_key} may exist, or not: {failure.text}",
            hint=f"ask again with `{command}`",
            idempotency_key=request.idempotency_key,
            reason=failure.text,
        )


class _Used(NamedTuple):
    """The stubs and the metadata for calls."""

    line: Line
    stubs: Sequence[Any]
    metadata: Metadata


def _status(response: Any) -> str:
    """Return the name of a response's status; ORDER_STATUS_UNSPECIFIED for a status of a later version."""
    known = orders_pb2.OrderStatus.DESCRIPTOR.values_by_number.get(response.status)
    return known.name if known else "ORDER_STATUS_UNSPECIFIED"
