"""The cancels of a load: a share of its orders, half of them at once and half of them later.

An immediate cancel follows the answer to Create, usually before the order's first event is published. A later one
usually comes after the order's effects.
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
    outcome: str  # acknowledged, failed or unknown, as for a call
    error: BrewError | None
    retried: bool
    at_once: bool
    begun_s: float  # since the load began; negative during the warm-up
    answered_s: float

    @property
    def latency_s(self) -> float:
        """Seconds from the call to the answer."""
        return self.answered_s - self.begun_s


class CancelPlan:
    """Chooses the orders of a load that are cancelled, and when. Thread-safe."""

    def __init__(self, share: float) -> None:
        """Choose a share of the orders, from 0 to 1."""
        self._share = share
        self._lock = threading.Lock()
        self._made = 0
        self._chosen = 0
        self._later: deque[tuple[float, str]] = deque()

    def chosen(self, order_id: str) -> bool:
        """Say whether a new order is to be cancelled now. It may also be kept to be cancelled later."""
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
        """Remove and return a kept order that is due to be cancelled; None if there is none."""
        if not self._later:
            return None
        with self._lock:
            return self._later.popleft()[1] if self._later and self._later[0][0] <= time.monotonic() else None

    def left_s(self) -> float | None:
        """Return the seconds until the next kept order is due; None if there is none."""
        with self._lock:
            return max(0.0, self._later[0][0] - time.monotonic()) if self._later else None
