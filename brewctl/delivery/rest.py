"""Chooses how long a publisher or a consumer rests after each batch, by the measured cost of the batch.

A transaction, a poll and a wake-up cost the same for one order as for twenty. Without a rest, at a hundred orders a
second, a publisher or consumer takes more of a slow machine than the calls that create the orders. On a slow or busy
machine work takes longer, and so does the rest: more rows gather meanwhile, and share a transaction. A row that comes
after the end of the rest does not wait.
"""

import threading
import time
from collections.abc import Callable

# The length of a rest as a multiple of the work's time: on an idle machine, and on a full one, where then a quarter of
# the time is work.
_TIMES_ROOMY = 0.5
_TIMES = 3.0
# The longest rest as a multiple of the processor time that this process used. This bound matters where work waits for
# a distant server: a long rest saves nothing there and delays the next events.
_TIMES_COMPUTED = 8.0
# This many rows or records cost about as much as a transaction. A rest saves transactions, not rows: the more rows a
# transaction had, the shorter the rest.
_AS_MUCH = 100


class Rest:
    """The pause before the next look for work. Not thread-safe."""

    def __init__(self, *, crowding: Callable[[], float], most_s: float | None = None) -> None:
        """`most_s`: the longest rest, in seconds; default: a multiple of the processor time used.

        `crowding`: returns 0 for an idle machine, up to 1 for a full one.
        """
        self._most_s = most_s
        self._crowding = crowding
        self._cost_s, self._count = 0.0, 0  # since the last rest
        self._computed_before_s = time.process_time()
        self._until = 0.0
        self.last_s = 0.0  # the length of the last rest

    def worked(self, took_s: float, *, count: int = 0) -> None:
        """Note work that has just ended: its seconds, and its rows or records. The rest begins now."""
        self._cost_s += took_s
        self._count += count
        most_s = self._most_s
        if most_s is None:
            most_s = _TIMES_COMPUTED * (time.process_time() - self._computed_before_s)
        times = _TIMES_ROOMY + (_TIMES - _TIMES_ROOMY) * self._crowding()
        self.last_s = min(most_s, times * self._cost_s) / (1 + self._count / _AS_MUCH)
        self._until = time.monotonic() + self.last_s

    def take(self, stop: threading.Event) -> None:
        """Wait for the end of the rest, or a stop. Returns at once if the rest is over."""
        self._cost_s, self._count = 0.0, 0
        if (left_s := self._until - time.monotonic()) > 0:
            stop.wait(left_s)
        self._computed_before_s = time.process_time()
