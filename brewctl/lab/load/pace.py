"""The times at which the calls of an open loop are due, with a rate that may change."""

from collections import deque
from itertools import pairwise


class CallSchedule:
    """A schedule of `rate` calls a second from `since` on. Times are those of time.monotonic().

    `set_rate` may be called from any thread, the other methods by one thread at a time.
    """

    def __init__(self, rate: float, since: float) -> None:
        self._rate = rate
        self._since = since
        self._before = 0.0  # calls that were due before `since`
        self._changes: deque[tuple[float, float]] = deque()

    def set_rate(self, rate: float, now: float) -> None:
        """Change the rate from `now` on. Calls that were due before stay due."""
        self._changes.append((now, rate))

    def due(self, number: int) -> float:
        """Return when a call is due. Calls are numbered from 0; call this in their order."""
        while True:
            at = self._since + (number - self._before) / self._rate
            if not self._changes or at <= self._changes[0][0]:
                return at
            changed, rate = self._changes.popleft()
            self._before += (changed - self._since) * self._rate
            self._since, self._rate = changed, rate

    def count(self, now: float) -> int:
        """Count the calls that are due before `now`."""
        steps = pairwise([(self._since, self._rate), *self._changes, (now, 0.0)])
        return int(self._before + sum((until - since) * rate for (since, rate), (until, _) in steps))
