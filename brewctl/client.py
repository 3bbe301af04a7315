"""A client of order-service: each call is tried until it is answered or time is up, and is made once all the same."""

import itertools
import random
import shlex
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc

from brewctl.errors import BrewError, UnreachableError, UsageError
from brewctl.proto import orders_pb2, orders_pb2_grpc

# What another try may change; every other answer would be the same again.
_RETRIED = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
        # The answer is lost: the transport, or the attempt's own deadline, ended the call.
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)
# An order-service is where its address says, as PostgreSQL and Kafka are. https_proxy and its like, which gRPC obeys by
# default, are meant for the web: such a proxy refuses a port like ours, and its 127.0.0.1 is another machine.
DIRECT = (("grpc.enable_http_proxy", 0),)
_CHANNEL = [
    # A replica that is back is found within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # In spite of its name: what one connection attempt may take.
    ("grpc.min_reconnect_backoff_ms", 2000),
    *DIRECT,
]
_ADDRESSES = "BREW_ORDER_ADDRS or --addr"
THIS_MACHINE = frozenset({"127.0.0.1", "localhost", "[::1]"})
# What mends a refusal that another try would meet again.
_HINTS = {
    grpc.StatusCode.ALREADY_EXISTS: "give another order another --idempotency-key",
    grpc.StatusCode.NOT_FOUND: "`brewctl create-order` prints the ids of those that it makes",
    grpc.StatusCode.UNIMPLEMENTED: f"it is another gRPC server, or an older brewctl: correct {_ADDRESSES}",
}
# Between two rounds of the addresses: doubled from the one to the other.
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 1.0
# Where nothing listens, and never did, the address is wrong: nobody wants to wait long to hear that.
_REFUSED_S = 2.0
# A try with less time than this would hardly be answered, and would put an outcome in doubt that is known.
_SHORTEST_TRY_S = 0.1


class UnknownOutcomeError(UnreachableError):
    """An order, or a cancel, that may have been committed, unheard: the same call again settles it.

    `reason` is why nothing was heard, without the `idempotency_key`, which a cancel has not.
    """

    def __init__(self, message: str, *, hint: str, reason: str, idempotency_key: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
        self.idempotency_key = idempotency_key


class Placed(NamedTuple):
    """An order, and the name of its status: one that its key made before may be cancelled since."""

    order_id: str
    status: str


class OrderClient:
    """Calls order-service round robin, from any number of threads. Use it as a context manager.

    A call is tried at one address after the other for `timeout_s` seconds in all, `attempt_s` at most each, and has its
    effect once, however many of the tries arrive. `on_retry` is told why, before each try but the first.

    Each address gets so many `connections`; a thread keeps to one of them, and the threads take them in turn. One
    serves any number of threads, but ends in one process: those of `serve order --workers` each need one of their own.
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
    ) -> None:
        """Connect at the first order. `tenant` is sent as x-tenant-id; empty: the service's default."""
        if not (tenant.isascii() and tenant.isprintable()):
            raise UsageError(f"tenant {tenant[:80]!r} can't be sent", hint="use letters, digits, '.', '_', '-'")
        self._addresses = addresses
        self._tenant = tenant
        self._timeout_s = timeout_s
        self._attempt_s = attempt_s
        self._on_retry = on_retry
        # gRPC joins the connections of a process to one address, unless each channel has a pool of its own.
        options = [*_CHANNEL, ("grpc.use_local_subchannel_pool", int(connections > 1))]
        self._channels = [
            grpc.insecure_channel(address, options=options) for _ in range(connections) for address in addresses
        ]
        self._stubs = [orders_pb2_grpc.OrderServiceStub(channel) for channel in self._channels]
        self._turns = itertools.count()
        self._threads = itertools.count()
        self._of_thread = threading.local()
        self._met = threading.Event()  # somebody has listened at an address

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels:
            channel.close()

    def create(self, customer_id: str, *, amount_cents: int, currency: str, idempotency_key: str = "") -> str:
        """Create an order as `place` does, and return its id."""
        return self.place(
            customer_id, amount_cents=amount_cents, currency=currency, idempotency_key=idempotency_key
        ).order_id

    def place(self, customer_id: str, *, amount_cents: int, currency: str, idempotency_key: str = "") -> Placed:
        """Create an order, or find the one that its key (default: a new one) made before.

        Raises UsageError for bad input, BrewError for another answer that stands, such as a key that made another
        order; UnreachableError where time is up and surely nothing was written, UnknownOutcomeError where not surely.
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
        """Cancel an order, also one that is cancelled already, and return the name of its status.

        Raises UsageError for bad input, BrewError for another answer that stands, such as of an order that is not
        there; UnreachableError where time is up and surely nothing was written, UnknownOutcomeError where not surely.
        """
        try:
            request = orders_pb2.CancelRequest(order_id=order_id, reason=reason)
        except UnicodeEncodeError:
            raise UsageError("order id and reason must be valid UTF-8") from None
        return _status(self._answer("Cancel", request, lambda failure: self._unknown_cancel(failure, request)))

    def _answer(self, method: str, request: Any, unknown: "Callable[[_Failure], UnknownOutcomeError]") -> Any:
        """Call a method, again where that may help, and return its response."""
        started, first, doubtful = time.monotonic(), next(self._turns), False
        for tries in itertools.count(1):
            left_s = started + self._timeout_s - time.monotonic()
            outcome = self._try(
                method, (first + tries - 1) % len(self._addresses), request, min(self._attempt_s, left_s)
            )
            if not isinstance(outcome, _Failure):
                return outcome
            doubtful = doubtful or outcome.doubtful
            pause_s = outcome.pause_s(rounds=tries // len(self._addresses), within=tries % len(self._addresses) > 0)
            bound_s = self._timeout_s if self._met.is_set() else min(self._timeout_s, _REFUSED_S)
            out_of_time = time.monotonic() + pause_s + _SHORTEST_TRY_S > started + bound_s
            if out_of_time or not outcome.worth_a_retry:
                raise unknown(outcome) if doubtful and outcome.worth_a_retry else outcome.error()
            if self._on_retry:
                self._on_retry(outcome.text)
            time.sleep(pause_s)
        raise AssertionError  # count() has no end

    def _try(self, method: str, at: int, request: Any, timeout_s: float) -> Any:
        metadata = (("x-tenant-id", self._tenant),) if self._tenant else ()
        try:
            response = getattr(self._stub(at), method)(request, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            failure = _Failure(error, self._addresses[at])
            if not failure.not_there:
                self._met.set()
            return failure
        self._met.set()
        return response

    def _stub(self, at: int) -> Any:
        """Return this thread's own at an address."""
        try:
            number = self._of_thread.number
        except AttributeError:
            number = self._of_thread.number = next(self._threads)
        return self._stubs[(number * len(self._addresses) + at) % len(self._stubs)]

    def _unknown_cancel(self, failure: "_Failure", request: orders_pb2.CancelRequest) -> UnknownOutcomeError:
        words = ["brewctl", "cancel-order", request.order_id]
        words += ["--reason", request.reason] if request.reason else []
        words += [word for address in self._addresses for word in ("--addr", address)]
        return UnknownOutcomeError(
            f"order {request.order_id} may be cancelled, or not: {failure.text}",
            hint=f"ask again with `{shlex.join(words)}`",
            reason=failure.text,
        )

    def _unknown_order(self, failure: "_Failure", request: orders_pb2.CreateRequest) -> UnknownOutcomeError:
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


def _status(response: Any) -> str:
    """Name the status of a response; one of a later version is not known here."""
    known = orders_pb2.OrderStatus.DESCRIPTOR.values_by_number.get(response.status)
    return known.name if known else "ORDER_STATUS_UNSPECIFIED"


class _Failure:
    """How a try failed, and what follows from it."""

    def __init__(self, error: grpc.RpcError, address: str) -> None:
        self._address = address
        self._code = error.code()
        self._details = " ".join(str(error.details()).split())
        metadata = {key: str(value) for key, value in error.trailing_metadata() or ()}
        # gRPC's own words for when to retry, in milliseconds; what is no such number means never.
        self._pushback = metadata.get("grpc-retry-pushback-ms")
        self.not_there = self._code is grpc.StatusCode.UNAVAILABLE and self._details.startswith(
            ("failed to connect", "errors resolving")
        )

    @property
    def text(self) -> str:
        """Say it in the user's words."""
        if self._code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"order-service {self._address} did not answer in time"
        if not self.not_there:
            return f"order-service {self._address} answered {self._code.name}: {self._details}"
        if "refused" in self._details:
            return f"order-service {self._address} refused the connection"
        unknown = "resolving" in self._details
        return f"order-service {self._address} {'is an unknown host' if unknown else 'can not be connected to'}"

    @property
    def worth_a_retry(self) -> bool:
        """Whether another try may end otherwise."""
        return self._code in _RETRIED and (self._pushback is None or self._pushback.isdecimal())

    @property
    def doubtful(self) -> bool:
        """Whether it may have been committed all the same."""
        if self._code is grpc.StatusCode.UNAVAILABLE:
            # Said by the service it means: not written. Said by the transport: the connection is gone, at any point.
            return not self.not_there and self._pushback is None
        return self._code in _RETRIED and self._code is not grpc.StatusCode.RESOURCE_EXHAUSTED

    def pause_s(self, *, rounds: int, within: bool) -> float:
        """How long to wait: as the service says, if it does; else not before every address had its turn, then more."""
        pushback_s = int(self._pushback) / 1000 if self._pushback and self.worth_a_retry else 0.0
        backoff_s = 0.0 if within else min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(rounds - 1, 16))
        return max(pushback_s, backoff_s) * random.uniform(1, 1.5)  # noqa: S311 - jitter, no secret

    def error(self) -> BrewError:
        """Return what the caller is told where nothing was written."""
        if self._code is grpc.StatusCode.INVALID_ARGUMENT:
            return UsageError(self._details)
        if self._code is grpc.StatusCode.FAILED_PRECONDITION:
            return BrewError(self.text, hint="change the order, or the trigger or constraint that refuses it")
        if not self.worth_a_retry:
            return BrewError(self.text, hint=_HINTS.get(self._code, ""))
        return UnreachableError(self.text, hint=self._way_there)

    @property
    def _way_there(self) -> str:
        """What brings an answer: it depends on who is there now."""
        host, _, port = self._address.rpartition(":")
        if not self.not_there:
            return f"`brewctl doctor --addr {self._address}` says what it lacks"
        if "resolving" in self._details:
            return f"correct the host in {_ADDRESSES}"
        if "refused" not in self._details:
            return f"see what is there with `brewctl doctor --addr {self._address}`, or correct {_ADDRESSES}"
        if host in THIS_MACHINE:
            return f"run `brewctl serve order --port {port}`, or correct {_ADDRESSES}"
        return f"start order-service there, or correct {_ADDRESSES}"
