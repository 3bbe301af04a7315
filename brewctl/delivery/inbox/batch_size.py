"""Chooses how many events `inbox` puts into one transaction, by how long the last transactions took."""

import time

from brewctl import log
from brewctl.limits import Limits

logger = log.get(__name__)

_SAY_EVERY_S = 60.0


class BatchSize:
    """The number of events in the next transaction: halved by a timeout, grown again by quick transactions.

    A stop and a rebalance wait for the open transaction. So it should take at most a quarter of the drain timeout, of
    the session timeout and of the statement timeout.
    """

    def __init__(self, limits: Limits) -> None:
        self._most = limits.consume_records
        self.target_s = min(limits.database_statement_s, limits.session_s, limits.drain_s) / 4
        self.size = min(limits.consume_records_first, self._most)
        self.trouble = ""  # how slow the effect is; empty while it is not
        self._said_at = -_SAY_EVERY_S

    def note(self, events: int, took_s: float) -> None:
        """Note a committed transaction: how many events it had, and how many seconds it took."""
        full = events >= self.size
        if took_s > self.target_s:
            self.size = max(1, min(self.size, int(events * self.target_s / took_s)))
        elif full and took_s <= self.target_s / 2:
            self.size = min(self._most, 2 * self.size)
        if took_s > self.target_s or (full and took_s > self.target_s / 2 and self.size < self._most):
            self._complain(events, f"took {took_s:.1f} s")

    def note_timeout(self, events: int, reason: str) -> None:
        """Note a transaction that ran into a timeout: the next has half as many events."""
        self.halve(events)
        self._complain(events, f"not done in time ({reason})")

    def halve(self, events: int) -> None:
        """Give the next transaction half as many events as this one had."""
        self.size = max(1, events // 2)

    def note_batch(self, took_s: float) -> None:
        """Note how long a whole batch took, in one transaction or several: a quick one ends the trouble."""
        if took_s <= self.target_s / 2:
            self.trouble = ""

    def _complain(self, events: int, what: str) -> None:
        # One line when it begins; the presence row and `doctor` show how it goes on.
        now = time.monotonic()
        if not self.trouble and now >= self._said_at + _SAY_EVERY_S:
            self._said_at = now
            hint = "it goes on with smaller transactions: see in pg_stat_activity what they wait for"
            logger.warning("effect_slow", events=events, reason=what, hint=hint)
        self.trouble = f"its effect is slow: {events} event{'s' if events > 1 else ''}, {what}"
