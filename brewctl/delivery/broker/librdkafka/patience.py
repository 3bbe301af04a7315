"""How long a member waits for its broker: without a bound while it runs, for a few seconds after a stop."""

import threading
import time

_SLICE_S = 0.1


class Patience:
    """Of one member, from the first question after a stop on."""

    def __init__(self, stop: threading.Event, *, leave_s: float) -> None:
        self._stop = stop
        self._leave_s = leave_s
        self._until: float | None = None

    def wait(self, done: threading.Event, *, until: float | None = None) -> bool:
        """Wait for an event, at most until then, or until it is over; say whether the event came."""
        while not done.wait(_SLICE_S):
            if self.is_over() or (until is not None and time.monotonic() > until):
                return False
        return True

    def is_over(self) -> bool:
        """Say whether a stop was asked for, and so many seconds ago."""
        if not self._stop.is_set():
            return False
        self._until = self._until or time.monotonic() + self._leave_s
        return time.monotonic() > self._until
