"""How long a member waits for its broker: without a bound while it runs, for a few seconds after a stop."""

import threading
import time

_SLICE_S = 0.1


class Patience:
    """The waits of one member. After a stop they end `leave_s` seconds after the first of them."""

    def __init__(self, stop: threading.Event, *, leave_s: float) -> None:
        self._stop = stop
        self._leave_s = leave_s
        self._until: float | None = None

    def wait(self, done: threading.Event, *, until: float | None = None) -> bool:
        """Wait for an event, at most until `until` and until `is_over`. Return whether it was set."""
        while not done.wait(_SLICE_S):
            if self.is_over() or (until is not None and time.monotonic() > until):
                return False
        return True

    def is_over(self) -> bool:
        """Return whether the time to wait after a stop has passed."""
        if not self._stop.is_set():
            return False
        self._until = self._until or time.monotonic() + self._leave_s
        return time.monotonic() > self._until
