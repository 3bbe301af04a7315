"""Send Create calls from many callers, in a closed or an open loop, and record each outcome.

Closed loop: a caller sends its next order after the answer to the last one. Open loop: each call is due at a fixed
time, whether earlier calls were answered or not, so that a stall of the server shows in the latencies.
"""

import itertools
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

from brewctl.affinity import on_one_core
from brewctl.client import OrderClient, UnknownOutcomeError
from brewctl.delivery.orders.cancellation import LONGEST_REASON
from brewctl.errors import BrewError, UnreachableError, UsageError
from brewctl.lab.load.cancels import Cancel, CancelPlan
from brewctl.lab.load.pace import CallSchedule
from brewctl.security import PLAINTEXT, OrderSecurity

_SLICE_S = 0.1
_REASON = "the load changed its mind"
_INVALID_CANCEL_EVERY = 3  # not 2, as every other cancel is immediate, and some of both kinds must be invalid


class CallOutcome(StrEnum):
    """What the client knows about its order after the call."""

    ACKNOWLEDGED = "acknowledged"
    FAILED = "failed"  # no try has written it
    UNKNOWN = "unknown"  # at least one try got no answer: the order may be written


@dataclass(frozen=True, slots=True)
class LoadCall:
    """One order as its client saw it, retries included. Times are seconds since the load began, after the warm-up."""

    key: str
    outcome: CallOutcome
    order_id: str
    error: BrewError | None
    retried: bool
    intended_s: float  # when it was due; in a closed loop, when it began
    begun_s: float
    answered_s: float

    @property
    def latency_s(self) -> float:
        """Seconds from when it was due to the answer."""
        return self.answered_s - self.intended_s


class History:
    """All calls and cancels of a load."""

    def __init__(self) -> None:
        self.calls: list[LoadCall] = []
        self.cancels: list[Cancel] = []

    def record(self, call: LoadCall) -> None:
        """Add a call. Thread-safe."""
        self.calls.append(call)

    def record_cancel(self, cancel: Cancel) -> None:
        """Add a cancel. Thread-safe."""
        self.cancels.append(cancel)

    def count(self, outcome: CallOutcome) -> int:
        """Count the calls with this outcome."""
        return sum(call.outcome is outcome for call in self.calls)

    @property
    def slowest_s(self) -> float:
        """The longest latency."""
        return max((call.latency_s for call in self.calls), default=0.0)


class Load:
    """Creates orders from `concurrency` callers, at `rate` orders a second or, without one, in a closed loop.

    At most `concurrency` calls are in flight; further calls of an open loop queue. The callers' threads pass every call
    to `record`; an exception from it ends the load. `run` may be called only once.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        record: Callable[[LoadCall], object],
        *,
        rate: float | None = None,
        concurrency: int = 64,
        warmup_s: float = 0.0,
        duration_s: float | None = None,
        orders: int | None = None,
        timeout_s: float = 15.0,
        seed: str = "",
        invalid_every: int = 0,
        cancel: float = 0.0,
        record_cancel: Callable[[Cancel], object] = lambda _cancel: None,
        connections: int = 1,
        security: OrderSecurity = PLAINTEXT,
    ) -> None:
        """Make a load that ends `duration_s` seconds, or `orders` calls, after its warm-up.

        `invalid_every`: one call of this many is invalid, and every third cancel; 0: none is. `cancel`: the share of
        the orders that are cancelled; `record_cancel` gets each cancel. `connections`: to each address; the callers use
        them in turn.
        """
        self._addresses = addresses
        self._record = record
        self._rate = rate
        self._concurrency = concurrency
        self._warmup_s = warmup_s
        self._duration_s = float("inf") if duration_s is None else duration_s
        self._left = float("inf") if orders is None else orders
        self._timeout_s = timeout_s
        self._seed = seed or uuid.uuid4().hex[:8]
        self._invalid_every = invalid_every
        self._cancels = CancelPlan(cancel)
        self._cancel_numbers = itertools.count()
        self._record_cancel = record_cancel
        self._connections = connections
        self._security = security
        self._began = 0.0
        self._pace: CallSchedule | None = None
        self._turn = threading.Lock()
        self._over = threading.Event()
        self._this_call = threading.local()
        self.sent = 0  # calls, including the warm-up
        self.unsent = 0  # calls of an open loop that were due at the end, but still waited for a caller

    def run(self, stop: threading.Event) -> None:
        """Send until the load is over or `stop` is set; then wait for the last answers, for a call's timeout at most.

        Raises what `record` raised.
        """
        now = time.monotonic()
        self._began = now + self._warmup_s
        self._pace = CallSchedule(self._rate, now) if self._rate else None
        with (
            on_one_core(),
            OrderClient(
                self._addresses,
                timeout_s=self._timeout_s,
                on_retry=self._on_retry,
                connections=self._connections,
                security=self._security,
            ) as client,
            ThreadPoolExecutor(self._concurrency, thread_name_prefix="load") as callers,
        ):
            try:
                calling = [callers.submit(self._call_on, client) for _ in range(self._concurrency)]
                while not stop.is_set() and (left_s := self._began + self._duration_s - time.monotonic()) > 0:
                    if self._over.wait(min(left_s, _SLICE_S)):
                        break
            finally:
                self._over.set()
            with self._turn:
                if self._pace and self._left > 0:
                    self.unsent = max(0, self._pace.count(time.monotonic()) - self.sent)
            for caller in calling:
                caller.result()

    def set_rate(self, rate: float) -> None:
        """Change the rate of an open loop. Calls that were due before stay due.

        Raises ValueError for a closed loop, or if `rate` is not above 0.
        """
        if self._rate is None or rate <= 0:
            raise ValueError(f"no rate to change from {self._rate} to {rate}")
        self._rate = rate
        if self._pace:
            self._pace.set_rate(rate, time.monotonic())

    def _call_on(self, client: OrderClient) -> None:
        try:
            while turn := self._next():
                call = self._call(client, *turn)
                self._record(call)
                if call.outcome is CallOutcome.ACKNOWLEDGED and self._cancels.chosen(call.order_id):
                    self._cancel(client, call.order_id, at_once=True)
                while order_id := self._cancels.due():
                    self._cancel(client, order_id, at_once=False)
            while (left_s := self._cancels.left_s()) is not None:
                time.sleep(min(left_s, _SLICE_S))
                order_id = self._cancels.due()
                if order_id and isinstance(self._cancel(client, order_id, at_once=False), UnreachableError):
                    break  # no server answers: each further cancel would wait for its timeout too
        finally:
            self._over.set()

    def _next(self) -> tuple[int, float, float] | None:
        """Wait until the next call is due. Returns its number, its due time and the present time; None at the end."""
        # One caller sleeps until the call is due; the others wait for the lock.
        with self._turn:
            while not self._over.is_set():
                now = time.monotonic()
                due = self._pace.due(self.sent) if self._pace else now
                if due > now:
                    self._over.wait(min(due - now, _SLICE_S))  # in slices, as the rate may change meanwhile
                    continue
                number = self.sent
                self.sent += 1
                if now >= self._began:
                    self._left -= 1
                    if self._left <= 0:
                        self._over.set()
                return number, due, now
        return None

    def _call(self, client: OrderClient, number: int, due: float, begun: float) -> LoadCall:
        key = f"{self._seed}-{number}"
        currency = "NONE" if self._invalid_every and number % self._invalid_every == 0 else "EUR"
        order_id, outcome, error = "", CallOutcome.ACKNOWLEDGED, None
        self._this_call.retried = False
        try:
            order_id = client.create(
                f"customer-{number % 100}", amount_cents=100 + number % 900, currency=currency, idempotency_key=key
            )
        except BrewError as caught:
            error = caught.with_traceback(None)  # a traceback would keep all frames in memory
            outcome = CallOutcome.FAILED if _refused(caught, retried=self._this_call.retried) else CallOutcome.UNKNOWN
        return LoadCall(
            key,
            outcome,
            order_id,
            error,
            self._this_call.retried,
            intended_s=due - self._began,
            begun_s=begun - self._began,
            answered_s=time.monotonic() - self._began,
        )

    def _cancel(self, client: OrderClient, order_id: str, *, at_once: bool) -> BrewError | None:
        begun = time.monotonic()
        invalid = self._invalid_every and next(self._cancel_numbers) % _INVALID_CANCEL_EVERY == 0
        outcome, error = CallOutcome.ACKNOWLEDGED, None
        self._this_call.retried = False
        try:
            client.cancel(order_id, reason="x" * (LONGEST_REASON + 1) if invalid else _REASON)
        except BrewError as caught:
            error = caught.with_traceback(None)  # a traceback would keep all frames in memory
            outcome = CallOutcome.FAILED if _refused(caught, retried=self._this_call.retried) else CallOutcome.UNKNOWN
        times = (begun - self._began, time.monotonic() - self._began)
        self._record_cancel(Cancel(order_id, outcome, error, self._this_call.retried, at_once, *times))
        return error

    def _on_retry(self, _why: str) -> None:
        self._this_call.retried = True


def _refused(error: BrewError, *, retried: bool) -> bool:
    """Say whether no try has written the order. A final answer to a retry does not tell about the tries before it."""
    if isinstance(error, UnknownOutcomeError):
        return False
    return isinstance(error, UnreachableError | UsageError) or not retried
