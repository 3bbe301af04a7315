"""Rest: how long work in the background leaves the processor to others, by what the work was measured to cost.

What a transaction takes is measured, each time, and the share is the same on every machine and at every load. While the
publisher, or a consumer, rests, more work gathers, and its next transaction does it together. Work that comes after
the rest is over waits for nothing.
"""

import time

# So many times as long as the work took: it has a quarter of the time.
_REST = 3.0
# So many times as long as this process computed meanwhile. Less than the above where the work waited for a server, or
# for a processor that others have: then a longer rest only makes the next events late.
_REST_OF_COMPUTING = 8.0
# So many rows, or records, cost about as much as a transaction that has one. A rest saves transactions, not rows: the
# more of them one had, the less there is to save, and the more of them wait.
_AS_MUCH = 100


class Stopwatch:
    """Measures one piece of work from its construction on, and says how long to rest after it."""

    def __init__(self) -> None:
        self._began, self._computed_s = time.monotonic(), time.process_time()

    def took_s(self) -> float:
        """Return the seconds since the beginning."""
        return time.monotonic() - self._began

    def rest_s(self, count: int) -> float:
        """Return for how many seconds to rest from now on, after a transaction of so many rows or records."""
        computed_s = time.process_time() - self._computed_s
        return min(_REST * self.took_s(), _REST_OF_COMPUTING * computed_s) / (1 + count / _AS_MUCH)
