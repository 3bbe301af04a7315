"""Load: Create calls at a steady rate, and the client's own history of what it was told.

Open loop: each call has its time, whether the ones before it were answered or not, so a stall of the
server is not hidden by a client that politely waits.
"""

import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

from brewctl.client import OrderClient, UnknownOutcomeError
from brewctl.errors import BrewError


class Outcome(StrEnum):
    """What a client knows of its order."""

    ACKNOWLEDGED = "acknowledged"
    FAILED = "failed"  # surely not written
    UNKNOWN = "unknown"  # no answer to at least one try: it may be there


@dataclass(frozen=True, slots=True)
class Call:
    """One order as its client saw it, retries included. Seconds since the load began."""

    key: str
    outcome: Outcome
    order_id: str
    reason: str
    intended_s: float
    answered_s: float


class Load:
    """Creates orders until told to stop. Calls that wait for an answer are at most `concurrency`; later ones queue."""

    def __init__(
        self, addresses: Sequence[str], *, rate: float, concurrency: int = 64, timeout_s: float = 15.0, seed: str = ""
    ) -> None:
        self._addresses = addresses
        self._interval_s = 1 / rate
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._seed = seed or uuid.uuid4().hex[:8]
        self._turn = threading.Lock()
        self._next = 0
        self.history: list[Call] = []

    def run(self, stop: threading.Event) -> None:
        """Send until `stop` is set, then wait for the answers to what was sent, at most the client's timeout."""
        began = time.monotonic()
        with (
            OrderClient(self._addresses, timeout_s=self._timeout_s) as client,
            ThreadPoolExecutor(self._concurrency, thread_name_prefix="load") as workers,
        ):
            for worker in [workers.submit(self._work, client, began, stop) for _ in range(self._concurrency)]:
                worker.result()

    def count(self, outcome: Outcome) -> int:
        """Count the calls that ended so."""
        return sum(call.outcome is outcome for call in self.history)

    @property
    def slowest_s(self) -> float:
        """Seconds from when a call should have been sent to its answer, at most."""
        return max((call.answered_s - call.intended_s for call in self.history), default=0.0)

    def _work(self, client: OrderClient, began: float, stop: threading.Event) -> None:
        while not stop.is_set():
            with self._turn:
                number, self._next = self._next, self._next + 1
            intended_s = number * self._interval_s
            if stop.wait(max(0.0, began + intended_s - time.monotonic())):
                return
            key = f"{self._seed}-{number}"
            outcome, order_id, reason = self._call(client, key, number)
            self.history.append(Call(key, outcome, order_id, reason, intended_s, time.monotonic() - began))

    @staticmethod
    def _call(client: OrderClient, key: str, number: int) -> tuple[Outcome, str, str]:
        try:
            order_id = client.create(
                f"customer-{number % 100}", amount_cents=100 + number % 900, currency="EUR", idempotency_key=key
            )
        except UnknownOutcomeError as error:
            return Outcome.UNKNOWN, "", str(error)
        except BrewError as error:
            return Outcome.FAILED, "", str(error)
        return Outcome.ACKNOWLEDGED, order_id, ""
