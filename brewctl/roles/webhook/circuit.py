"""Whether the receiver is called at all: after failures of several customers in a row it is left alone for a while.

    closed ──5 customers in a row, or nothing listens──► open ──its time is over──► half open: one call
      ▲                                                     ▲                            │
      └──────────────────────── 2xx ────────────────────────┼────────────────────────────┤
                                                            └── fails: twice as long ────┘

Customers are counted, not calls: an event that fails again and again alone is at fault itself, and a receiver that is
slow for one customer is no reason to delay the others.

The libraries do not fit. pybreaker holds its lock for as long as a call takes, so that one slow call delays all
others; purgatory is for asyncio; neither can count customers, or tell for how long it will be open.
"""

import random
import threading
import time
from collections.abc import Callable

_LONGEST_S = 30.0


class Circuit:
    """Of one receiver. For many threads."""

    def __init__(
        self, *, most_in_a_row: int = 5, first_s: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most_in_a_row
        self._first_s = first_s
        self._clock = clock
        self._changed = threading.Condition()
        self._in_a_row: set[str] = set()
        self._open_until: float | None = None  # None: closed
        self._open_s = 0.0  # how long it was open last
        self._probing = False

    def enter(self, *, patience_s: float = 0.0) -> float:
        """Return 0 for a call now, whose end is told to `succeeded`, `failed` or `left`; else when to ask again.

        It is waited for `patience_s` at most: while the receiver is called by nobody, nobody is delayed by that.
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

    def left(self) -> None:
        """Note a call that ended without an answer of either kind, such as one that was cancelled."""
        with self._changed:
            self._probing = False
            self._changed.notify_all()

    def succeeded(self) -> bool:
        """Note an answer that says done; return whether the circuit was open until now."""
        with self._changed:
            opened = self._open_until is not None
            self._open_until, self._open_s, self._probing = None, 0.0, False
            self._in_a_row.clear()
            self._changed.notify_all()
            return opened

    def failed(self, party: str, *, away: bool = False, pause_s: float = 0.0) -> float:
        """Note a failure; return for how many seconds the circuit is open now, 0 where it is closed.

        `party`: the customer, or the event, with whom. `away`: nothing was sent, so that it is no event's fault.
        `pause_s`: what the receiver asked for.
        """
        with self._changed:
            self._in_a_row.add(party)
            if self._open_until is not None and not self._probing:
                return max(0.0, self._open_until - self._clock())  # of a call that began before it was opened
            if not (away or self._probing or len(self._in_a_row) >= self._most):
                return 0.0
            self._probing = False
            self._open_s = min(_LONGEST_S, 2 * self._open_s or self._first_s)
            # Several nodes do not come back at one moment.
            seconds = max(self._open_s * random.uniform(0.75, 1.25), pause_s)  # noqa: S311 - no secret
            self._open_until = self._clock() + seconds
            self._changed.notify_all()
            return seconds
