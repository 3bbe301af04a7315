"""A failed call to order-service: whether a retry may succeed, and the error for its caller."""

import random
from typing import TYPE_CHECKING

import grpc

from brewctl.client.channels import THIS_MACHINE
from brewctl.errors import BrewError, UnreachableError, UsageError
from brewctl.security import ORDER

if TYPE_CHECKING:
    from brewctl.client.handshake import Cause

# Codes after which a retry may succeed. With any other code it would get the same answer again.
_RETRIED = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
        # The answer was lost: the transport or the attempt's deadline ended the call.
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)
_ADDRESSES = "BREW_ORDER_ADDRS or --addr"
# What to do about a refusal that a retry would meet again.
_HINTS = {
    grpc.StatusCode.ALREADY_EXISTS: "give another order another --idempotency-key",
    grpc.StatusCode.NOT_FOUND: "`brewctl create-order` prints the ids of those that it makes",
    grpc.StatusCode.UNAUTHENTICATED: (
        f"set {ORDER['order_token_file']} to a file with a token of its --tokens, or {ORDER['order_token']} to it"
    ),
    grpc.StatusCode.PERMISSION_DENIED: "leave --tenant away, or use a token of that tenant",
    grpc.StatusCode.UNIMPLEMENTED: f"it is another gRPC server, or an older brewctl: correct {_ADDRESSES}",
}
# The pause after each address was tried once; it doubles with each round.
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 1.0
# With these codes this try surely wrote nothing. An earlier one, with another token, may have written the order.
_REFUSED_CALLER = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})


class Failure:
    """A failed try of a call."""

    def __init__(self, error: grpc.RpcError, address: str) -> None:
        self.address = address
        self.cause: Cause | None = None  # the fault of TLS, if there is one: a retry meets it again
        self.renewed = False  # the token or the certificates have changed since: a retry uses the new ones
        self._code = error.code()
        self._details = " ".join(str(error.details()).split())
        metadata = {key: str(value) for key, value in error.trailing_metadata() or ()}
        # When to retry, in milliseconds, as gRPC defines it. A value that is no such number means never.
        self._pushback = metadata.get("grpc-retry-pushback-ms")
        self.not_there = self._code is grpc.StatusCode.UNAVAILABLE and self._details.startswith(
            ("failed to connect", "errors resolving")
        )

    @property
    def of_security(self) -> bool:
        """Whether a changed token or certificate may help."""
        return self.not_there or self._code is grpc.StatusCode.UNAUTHENTICATED

    @property
    def handshake_failed(self) -> bool:
        """Whether a server accepted the connection, and the handshake failed."""
        return self.not_there and "refused" not in self._details and "resolving" not in self._details

    @property
    def text(self) -> str:
        """The failure in the user's words."""
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
        """Whether a retry may succeed."""
        return self.renewed or (self._code in _RETRIED and (self._pushback is None or self._pushback.isdecimal()))

    @property
    def settles_nothing(self) -> bool:
        """Whether this answer leaves the outcome of an earlier, unanswered try unknown."""
        return self.worth_a_retry or self._code in _REFUSED_CALLER

    @property
    def doubtful(self) -> bool:
        """Whether this try may have been committed although it failed."""
        if self._code is grpc.StatusCode.UNAVAILABLE:
            # From the service UNAVAILABLE means: not written. From the transport: the connection was lost at any point.
            return not self.not_there and self._pushback is None
        return self._code in _RETRIED and self._code is not grpc.StatusCode.RESOURCE_EXHAUSTED

    def pause_s(self, *, rounds: int, within: bool) -> float:
        """Return how many seconds to wait before the next try.

        As long as the service says, if it does. Otherwise not at all `within` a round of the addresses, and longer
        after each round.
        """
        pushback_s = int(self._pushback) / 1000 if self._pushback and self.worth_a_retry else 0.0
        backoff_s = 0.0 if within else min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(rounds - 1, 16))
        return max(pushback_s, backoff_s) * random.uniform(1, 1.5)  # noqa: S311 - jitter, no secret

    def error(self) -> BrewError:
        """Return the error for the caller if nothing was written."""
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
        """The hint for a service that did not answer, by what was found at its address."""
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
