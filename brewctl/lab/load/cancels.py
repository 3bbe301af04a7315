"""The cancels of a load: a share of the orders that it makes, half of them at once and half of them later.

At once is right after the answer to Create, and so mostly before the order's first event is published; later is mostly
after its effects.
"""

import threading
import time
from collections import deque
from dataclasses import dataclass

from brewctl.errors import BrewError

LATER_S = 1.0


@dataclass(frozen=True, slots=True)
class Cancel:
    """One cancel as its client saw it, retries included."""

    order_id: str
    outcome: str  # as of a call: acknowledged, failed, unknown
    error: BrewError | None
    retried: bool
    at_once: bool
    begun_s: float  # since the load began, negative in the warm-up
    answered_s: float

    @property
    def latency_s(self) -> float:
        """Seconds from its beginning to its answer."""
        return self.answered_s - self.begun_s


class CancelPlan:
    """Which orders of a load are cancelled, and when. Safe between threads."""

    def __init__(self, share: float) -> None:
        """Cancel `share` of the orders: 0 to 1."""
        self._share = share
        self._lock = threading.Lock()
        self._made = 0
        self._chosen = 0
        self._later: deque[tuple[float, str]] = deque()

    def chosen(self, order_id: str) -> bool:
        """Say of an order that was just made whether it is to be cancelled now; it may be kept for later."""
        if not self._share:
            return False
        with self._lock:
            self._made += 1
            if int(self._made * self._share) == int((self._made - 1) * self._share):
                return False
            self._chosen += 1
            if self._chosen % 2:
                return True
            self._later.append((time.monotonic() + LATER_S, order_id))
            return False

    def due(self) -> str | None:
        """Take an order whose time to be cancelled has come, if there is one."""
        if not self._later:
            return None
        with self._lock:
            return self._later.popleft()[1] if self._later and self._later[0][0] <= time.monotonic() else None

    def left_s(self) -> float | None:
        """Say for how long the next one is still kept; None where there is none."""
        with self._lock:
            return max(0.0, self._later[0][0] - time.monotonic()) if self._later else None
