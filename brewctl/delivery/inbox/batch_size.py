"""How many events one transaction of a consumer has, by the time that the last ones took."""

import time

from brewctl import log
from brewctl.limits import Limits

logger = log.get(__name__)

_SAY_EVERY_S = 60.0


class BatchSize:
    """Halves what runs into a timeout, and grows again, by the time that the last transactions took.

    A stop and a rebalance wait for the transaction in hand. So it is to take at most a quarter of the drain's bound, of
    the session, and of what its own statement may take.
    """

    def __init__(self, limits: Limits) -> None:
        self._most = limits.consume_records
        self.target_s = min(limits.database_statement_s, limits.session_s, limits.drain_s) / 4
        self.size = min(limits.consume_records_first, self._most)
        self.trouble = ""  # says that the effect is slow, where it is
        self._said_at = -_SAY_EVERY_S

    def note(self, events: int, took_s: float) -> None:
        """Take note of a transaction that was committed."""
        full = events >= self.size
        if took_s > self.target_s:
            self.size = max(1, min(self.size, int(events * self.target_s / took_s)))
        elif full and took_s <= self.target_s / 2:
            self.size = min(self._most, 2 * self.size)
        if took_s > self.target_s or (full and took_s > self.target_s / 2 and self.size < self._most):
            self._complain(events, f"took {took_s:.1f} s")

    def note_timeout(self, events: int, reason: str) -> None:
        """Take note of a transaction that did not end in time: the next has half as many events."""
        self.halve(events)
        self._complain(events, f"not done in time ({reason})")

    def halve(self, events: int) -> None:
        """Let the next transaction have half as many events, whatever it was that this one waited for."""
        self.size = max(1, events // 2)

    def note_batch(self, took_s: float) -> None:
        """Take note of all that was read at a time, in one transaction or many: done quickly, nothing is slow."""
        if took_s <= self.target_s / 2:
            self.trouble = ""

    def _complain(self, events: int, what: str) -> None:
        # One line when it begins: how it goes on is for the presence row, and `doctor`, to tell.
        now = time.monotonic()
        if not self.trouble and now >= self._said_at + _SAY_EVERY_S:
            self._said_at = now
            hint = "it goes on with smaller transactions: see in pg_stat_activity what they wait for"
            logger.warning("effect_slow", events=events, reason=what, hint=hint)
        self.trouble = f"its effect is slow: {events} event{'s' if events > 1 else ''}, {what}"
