"""Rest: how long work in the background leaves the processor to others, by what the work was measured to cost.

Each transaction, poll and wake-up costs the same for one order as for twenty. A publisher, or a consumer, that took
each as it came would, at a hundred a second, take more of a slow machine than the calls that made them. What is
measured is long on a slow machine, or a busy one, and so is the rest; while it lasts more gathers, and is done
together. What comes after the rest is over waits for nothing.
"""

import threading
import time
from collections.abc import Callable

# So many times as long as the work took: where there is room, and where it is crowded. Then a quarter of the time is
# worked.
_TIMES_ROOMY = 0.5
_TIMES = 3.0
# So many times as long as this process computed meanwhile. Less than the above where the work waited for a server far
# away: then a longer rest only makes the next events late.
_TIMES_COMPUTED = 8.0
# So many rows, or records, cost about as much as a transaction that has one. A rest saves transactions, not rows: the
# more of them one had, the less there is to save, and the more of them wait.
_AS_MUCH = 100


class Rest:
    """When one that has done all there was looks for more. Not for two threads at a time."""

    def __init__(self, *, crowding: Callable[[], float], most_s: float | None = None) -> None:
        """`most_s`: a bound of each rest; without one it is what this process computed that bounds it.

        `crowding`: from 0, where nobody waits for a processor, to 1.
        """
        self._most_s = most_s
        self._crowding = crowding
        self._cost_s, self._count = 0.0, 0  # since the last rest
        self._computed_before_s = time.process_time()
        self._until = 0.0
        self.last_s = 0.0  # how long the last rest was to be

    def worked(self, took_s: float, *, count: int = 0) -> None:
        """Note work that has just ended: how long it took, for how many rows or records. A rest counts from here."""
        self._cost_s += took_s
        self._count += count
        most_s = self._most_s
        if most_s is None:
            most_s = _TIMES_COMPUTED * (time.process_time() - self._computed_before_s)
        times = _TIMES_ROOMY + (_TIMES - _TIMES_ROOMY) * self._crowding()
        self.last_s = min(most_s, times * self._cost_s) / (1 + self._count / _AS_MUCH)
        self._until = time.monotonic() + self.last_s

    def take(self, stop: threading.Event) -> None:
        """Wait for the end of the rest, or a stop. After a pause that was longer than that nothing waits."""
        self._cost_s, self._count = 0.0, 0
        if (left_s := self._until - time.monotonic()) > 0:
            stop.wait(left_s)
        self._computed_before_s = time.process_time()
