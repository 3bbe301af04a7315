"""How a call to order-service failed, whether another try may end otherwise, and what its caller is told."""

import random
from typing import TYPE_CHECKING

import grpc

from brewctl.client.channels import THIS_MACHINE
from brewctl.errors import BrewError, UnreachableError, UsageError
from brewctl.security import ORDER

if TYPE_CHECKING:
    from brewctl.client.handshake import Cause

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
_ADDRESSES = "BREW_ORDER_ADDRS or --addr"
# What mends a refusal that another try would meet again.
_HINTS = {
    grpc.StatusCode.ALREADY_EXISTS: "give another order another --idempotency-key",
    grpc.StatusCode.NOT_FOUND: "`brewctl create-order` prints the ids of those that it makes",
    grpc.StatusCode.UNAUTHENTICATED: (
        f"set {ORDER['order_token_file']} to a file with a token of its --tokens, or {ORDER['order_token']} to it"
    ),
    grpc.StatusCode.PERMISSION_DENIED: "leave --tenant away, or use a token of that tenant",
    grpc.StatusCode.UNIMPLEMENTED: f"it is another gRPC server, or an older brewctl: correct {_ADDRESSES}",
}
# Between two rounds of the addresses: doubled from the one to the other.
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 1.0
# They say of this try alone that nothing was written.
_REFUSED_CALLER = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})


class Failure:
    """How a try failed, and what follows from it."""

    def __init__(self, error: grpc.RpcError, address: str) -> None:
        self.address = address
        self.cause: Cause | None = None  # what is wrong with TLS: it gets well by somebody's hand alone
        self.renewed = False  # another try uses another token, or other certificates
        self._code = error.code()
        self._details = " ".join(str(error.details()).split())
        metadata = {key: str(value) for key, value in error.trailing_metadata() or ()}
        # gRPC's own words for when to retry, in milliseconds; what is no such number means never.
        self._pushback = metadata.get("grpc-retry-pushback-ms")
        self.not_there = self._code is grpc.StatusCode.UNAVAILABLE and self._details.startswith(
            ("failed to connect", "errors resolving")
        )

    @property
    def of_security(self) -> bool:
        """Whether another token, or another certificate, may be what it lacks."""
        return self.not_there or self._code is grpc.StatusCode.UNAUTHENTICATED

    @property
    def handshake_failed(self) -> bool:
        """Whether somebody took the connection, and it came to nothing."""
        return self.not_there and "refused" not in self._details and "resolving" not in self._details

    @property
    def text(self) -> str:
        """Say it in the user's words."""
        if self.cause:
            return f"order-service {self.address} {self.cause.text}"
        if self._code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"order-service {self.address} did not answer in time"
        if not self.not_there:
            return f"order-service {self.address} answered {self._code.name}: {self._details}"
        if "refused" in self._details:
            return f"order-service {self.address} refused the connection"
        unknown = "resolving" in self._details
        return f"order-service {self.address} {'is an unknown host' if unknown else 'can not be connected to'}"

    @property
    def worth_a_retry(self) -> bool:
        """Whether another try may end otherwise."""
        return self.renewed or (self._code in _RETRIED and (self._pushback is None or self._pushback.isdecimal()))

    @property
    def settles_nothing(self) -> bool:
        """Whether an order that was sent before, unheard, may have been written all the same."""
        return self.worth_a_retry or self._code in _REFUSED_CALLER

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
        if self.cause:
            return UnreachableError(self.text, hint=self.cause.hint)
        if not self.worth_a_retry:
            return BrewError(self.text, hint=_HINTS.get(self._code, ""))
        return UnreachableError(self.text, hint=self._way_there)

    @property
    def _way_there(self) -> str:
        """What brings an answer: it depends on who is there now."""
        host, _, port = self.address.rpartition(":")
        if not self.not_there:
            return f"`brewctl doctor --addr {self.address}` says what it lacks"
        if "resolving" in self._details:
            return f"correct the host in {_ADDRESSES}"
        if "refused" not in self._details:
            return f"see what is there with `brewctl doctor --addr {self.address}`, or correct {_ADDRESSES}"
        if host in THIS_MACHINE:
            return f"run `brewctl serve order --port {port}`, or correct {_ADDRESSES}"
        return f"start order-service there, or correct {_ADDRESSES}"
