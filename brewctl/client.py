"""A client of order-service: Create calls in turn over several addresses."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import grpc

from brewctl.errors import BrewError, UnreachableError, UsageError
from brewctl.proto import orders_pb2, orders_pb2_grpc

_HOPELESS = {
    grpc.StatusCode.INVALID_ARGUMENT: UsageError,
    grpc.StatusCode.UNAVAILABLE: UnreachableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: UnreachableError,
}


class OrderClient:
    """Calls `Create` round robin. Use it as a context manager."""

    def __init__(self, addresses: Sequence[str], *, timeout_s: float = 10.0) -> None:
        self._addresses = addresses
        self._timeout_s = timeout_s
        self._channels = [grpc.insecure_channel(address) for address in addresses]
        self._stubs = [orders_pb2_grpc.OrderServiceStub(channel) for channel in self._channels]
        self._calls = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels:
            channel.close()

    def create(self, customer_id: str, *, amount_cents: int, currency: str) -> str:
        """Create an order at the next address and return its id.

        Raises UsageError for bad input, UnreachableError where the service, or its database, is away.
        """
        turn = self._calls % len(self._stubs)
        self._calls += 1
        try:
            request = orders_pb2.CreateRequest(customer_id=customer_id, amount_cents=amount_cents, currency=currency)
        except UnicodeEncodeError:
            raise UsageError("customer and currency must be valid UTF-8") from None
        except ValueError:
            raise UsageError(f"amount_cents must be 1 to 10^12, not {amount_cents}") from None
        try:
            response = self._stubs[turn].Create(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise self._explained(error, self._addresses[turn]) from error
        return str(response.order_id)

    @staticmethod
    def _explained(error: grpc.RpcError, address: str) -> BrewError:
        code, details = error.code(), " ".join(str(error.details()).split())
        kind = _HOPELESS.get(code, BrewError)
        if kind is UsageError:
            return UsageError(details)
        if "failed to connect" in details.lower() or "connection refused" in details.lower():
            hint = f"run `brewctl serve order --port {address.rpartition(':')[2]}`, or set BREW_ORDER_ADDRS"
            return UnreachableError(f"order-service {address} refused the connection", hint=hint)
        return kind(f"order-service {address} answered {code.name}: {details}")
