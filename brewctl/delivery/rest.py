"""A rest after work, as long as the work was costly: then what comes meanwhile is done together.

Each poll, transaction and wake-up costs the same for one record as for twenty. A member that took every record as it
came would, at a hundred a second, take more of the machine than the calls that made them.
"""

import threading
import time

# A quarter of the time is worked: what is measured is long on a slow machine, or a busy one, and so is this.
_TIMES = 3


class Rest:
    """When one member that has read everything looks for more."""

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._cost_s = 0.0  # since the last rest
        self._until = 0.0

    def worked(self, took_s: float) -> None:
        """Note work that has just ended, and how long it took. A rest counts from here."""
        self._cost_s += took_s
        self._until = time.monotonic() + min(self._most_s, _TIMES * self._cost_s)

    def take(self, stop: threading.Event) -> None:
        """Wait for the end of the rest, or a stop. After a pause that was longer than that nothing waits."""
        self._cost_s = 0.0
        if (left_s := self._until - time.monotonic()) > 0:
            stop.wait(left_s)
