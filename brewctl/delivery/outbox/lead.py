"""The publishing lease: while one node is enough it publishes every node's rows, and the others wait.

    node takes the lease ──renews it──► … ──gives it up, or is killed──► the lease expires
      └── polls the outbox; the other nodes don't while the lease lasts

Two publishers that each send every second order cost twice as much as one that sends pairs. Only the cost depends on
the lease: two nodes that both believe to have it skip each other's locked rows, as without a lease. No node has it
while there is little to do (the node that commits a lone order publishes it at once), nor while one node is not enough.
"""

import time
from typing import LiteralString

import psycopg

from brewctl import log
from brewctl.delivery.database import Pool
from brewctl.limits import Limits
from brewctl.sql import queries

logger = log.get(__name__)

# A node takes the lease when its transactions take this share of the time, and keeps it down to the second one. Below
# that, commits are seldom close enough together to share a transaction, and polling finds no rows of other nodes.
_TAKE = 0.3
_KEEP = 0.15


class Lead:
    """A node's view of the lease. Not thread-safe."""

    def __init__(self, limits: Limits, pool: Pool, *, node: str) -> None:
        """Begin without the lease, and without knowing of another node's."""
        self._lasts_s = limits.publish_lead_s
        self._most_s = 4 * limits.publish_lead_s
        self._look_s = limits.publish_lead_s / 2
        self._pool = pool
        self._node = node
        self._since = time.monotonic()
        self._spent_s = 0.0
        self._others_until = 0.0
        self.ours = False

    def others_s(self) -> float:
        """Return for how many seconds another node has the lease, as far as is known; 0 where none has.

        Asks the database when the lease that was known of has expired. Raises psycopg.Error.
        """
        if not self._others_until:
            return 0.0
        if (left_s := self._others_until - time.monotonic()) <= 0:
            left_s = self._look_at_others()
        return left_s

    def note(self, *, took_s: float, found: int, gap_s: float, more: bool) -> None:
        """Note a batch, and take, renew or give up the lease. Raises psycopg.Error.

        `gap_s`: the pause before the next batch. `more`: rows were left over, so one node is not enough.
        """
        self._spent_s += took_s if found else 0.0
        passed_s = time.monotonic() - self._since
        if passed_s < self._look_s:
            return
        share, self._spent_s, self._since = self._spent_s / passed_s, 0.0, time.monotonic()
        if not more and share >= (_KEEP if self.ours else _TAKE):
            # Long enough to last until the next renewal, also where a transaction takes long.
            lasts_s = min(self._lasts_s + 2 * (took_s + gap_s), self._most_s)
            ours, others_s = self._ask(queries["take_lead"], lasts_s=lasts_s)
            self._say(ours=ours)
            self._heed(others_s)
        elif self.ours:
            self.give_up()
        elif share and not more:
            self._look_at_others()

    def give_up(self) -> None:
        """Give up the lease, if this node has it. Raises psycopg.Error."""
        if self.ours:
            self._say(ours=False)
            self._ask(queries["give_up_lead"])

    def forget(self) -> None:
        """After a failure: give up the lease, and forget what is known of another node's."""
        try:
            self.give_up()
        except psycopg.Error as error:
            logger.debug("lead_kept", reason=log.reason(error), hint="it ends by itself")
        self._others_until = 0.0

    def _look_at_others(self) -> float:
        _, others_s = self._ask(queries["lead_of_others"])
        self._heed(others_s)
        return others_s

    def _heed(self, others_s: float) -> None:
        self._others_until = time.monotonic() + others_s if others_s else 0.0

    def _say(self, *, ours: bool) -> None:
        if ours is not self.ours:
            self.ours = ours
            logger.debug("publishes_for_all" if ours else "publishes_for_all_no_more")

    def _ask(self, query: LiteralString, **parameters: object) -> tuple[bool, float]:
        """Return whether the lease is ours, and for how many seconds it is another node's."""
        with self._pool.connection() as connection:
            asked = {"node": self._node, "most_s": self._most_s, **parameters}
            ours, others_s = connection.execute(query, asked).fetchone() or (False, None)
        return ours, max(0.0, min(others_s or 0.0, self._most_s))
