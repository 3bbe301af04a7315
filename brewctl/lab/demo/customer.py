"""The customer: a thread that sends all orders, pauses once, and calls a function that kills a node."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from brewctl.client import OrderClient
from brewctl.errors import BrewError
from brewctl.security import PLAINTEXT, OrderSecurity

_PER_S = 40.0  # slow enough to watch
_LONGEST_S = 10.0  # many orders are sent faster, to take this long


class Customer:
    """Sends `orders` orders to `addresses` in turn.

    After `rest_at` orders it pauses until `go_on`; after `kill_at` orders it calls `kill`.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        orders: int,
        rest_at: int,
        kill_at: int,
        kill: Callable[[], None],
        security: OrderSecurity = PLAINTEXT,
    ) -> None:
        self.rate = max(_PER_S, orders / _LONGEST_S)
        self.acknowledged: list[str] = []
        self._addresses = addresses
        self._security = security
        self._orders = orders
        self._rest_at = rest_at
        self._kill_at = kill_at
        self._kill = kill
        self._rests = threading.Event()
        self._may_go_on = threading.Event()
        self._stop = threading.Event()
        self._sending: Future[None] = Future()

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Send while the block runs; stop when the block ends."""
        with ThreadPoolExecutor(1, thread_name_prefix="customer") as executor:
            self._sending = executor.submit(self._send)
            try:
                yield
            finally:
                self._stop.set()
                self._may_go_on.set()

    @property
    def rests(self) -> bool:
        """Whether it has reached its pause."""
        return self._rests.is_set()

    @property
    def done(self) -> bool:
        """Whether all orders are sent. Raises BrewError if one failed."""
        if not self._sending.done():
            return False
        if error := self._sending.exception():
            raise error if isinstance(error, BrewError) else BrewError(f"the client failed: {error}")
        return True

    def go_on(self) -> None:
        """End the pause."""
        self._may_go_on.set()

    def _send(self) -> None:
        with OrderClient(self._addresses, security=self._security) as client:
            for number in range(self._orders):
                if number == self._rest_at:
                    self._rests.set()
                    self._may_go_on.wait()
                if self._stop.wait(1 / self.rate):
                    return
                if number == self._kill_at:
                    self._kill()
                self.acknowledged.append(client.create(f"customer-{number % 7 + 1}", amount_cents=450, currency="EUR"))
