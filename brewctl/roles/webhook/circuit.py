"""A circuit breaker for the receiver: after failures for several customers in a row, no calls are made for a while.

    closed ──5 customers in a row, or nothing listens──► open ──its time is over──► half open: one call
      ▲                                                     ▲                            │
      └──────────────────────── 2xx ────────────────────────┼────────────────────────────┤
                                                            └── fails: twice as long ────┘

Customers are counted, not calls: one event that keeps failing is itself at fault, and a receiver that is slow for one
customer should not delay the others.

The libraries do not fit. pybreaker holds its lock during a call, so that one slow call delays all others; purgatory is
for asyncio; neither can count customers, or tell for how long it will be open.
"""

import random
import threading
import time
from collections.abc import Callable

_LONGEST_S = 30.0


class Circuit:
    """The circuit breaker of one receiver. Thread-safe."""

    def __init__(
        self, *, most_in_a_row: int = 5, first_s: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most_in_a_row
        self._first_s = first_s
        self._clock = clock
        self._changed = threading.Condition()
        self._in_a_row: set[str] = set()
        self._open_until: float | None = None  # None: closed
        self._open_s = 0.0  # for how long it was last opened
        self._probing = False

    def enter(self, *, patience_s: float = 0.0) -> float:
        """Return 0 if a call may be made now, else in how many seconds to ask again.

        Report the end of the call to `succeeded`, `failed` or `abandoned`. While the circuit is open, this waits for up
        to `patience_s` seconds before it answers.
        """
        until = time.monotonic() + patience_s
        with self._changed:
            while left_s := self._closed_in_s():
                if (patience_s := until - time.monotonic()) <= 0:
                    return left_s
                self._changed.wait(min(left_s, patience_s))
            return 0.0

    def _closed_in_s(self) -> float:
        if self._open_until is None:
            return 0.0
        if (left_s := self._open_until - self._clock()) > 0:
            return left_s
        if self._probing:
            return self._first_s
        self._probing = True
        return 0.0

    def abandoned(self) -> None:
        """Note a call that says nothing of the receiver, such as a cancelled one."""
        with self._changed:
            self._probing = False
            self._changed.notify_all()

    def succeeded(self) -> bool:
        """Note a successful call, and close the circuit. Return whether it was open until now."""
        with self._changed:
            opened = self._open_until is not None
            self._open_until, self._open_s, self._probing = None, 0.0, False
            self._in_a_row.clear()
            self._changed.notify_all()
            return opened

    def failed(self, party: str, *, away: bool = False, pause_s: float = 0.0) -> float:
        """Note a failed call. Return for how many seconds the circuit is open now; 0 if it is closed.

        `party`: the call's customer, or its event. `away`: nothing was sent, so that the fault is not the event's.
        `pause_s`: the pause that the receiver asked for.
        """
        with self._changed:
            self._in_a_row.add(party)
            if self._open_until is not None and not self._probing:
                return max(0.0, self._open_until - self._clock())  # the call began before the circuit was opened
            if not (away or self._probing or len(self._in_a_row) >= self._most):
                return 0.0
            self._probing = False
            self._open_s = min(_LONGEST_S, 2 * self._open_s or self._first_s)
            # Jitter: several nodes do not call again at one moment.
            seconds = max(self._open_s * random.uniform(0.75, 1.25), pause_s)  # noqa: S311 - no secret
            self._open_until = self._clock() + seconds
            self._changed.notify_all()
            return seconds
