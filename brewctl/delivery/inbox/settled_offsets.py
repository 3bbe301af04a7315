"""Collects the offsets of processed records for `consumption`, and says when to commit them.

Kafka writes each commit as a record, and copies it to every replica: a commit for each batch is more work for the
brokers than the batch itself. Records whose offsets were not committed when a process was killed are redelivered, and
skipped as duplicates.
"""

import math
import time
from collections.abc import Sequence

from brewctl.delivery.broker import Record
from brewctl.limits import Limits


class SettledOffsets:
    """The offsets that one group member has processed since its last commit, in the partitions assigned to it now."""

    def __init__(self, limits: Limits) -> None:
        self._every_s = limits.offset_commit_s
        # Two batches may be applied and not yet noted here: the one in the database, and the one before it.
        self._most = limits.redelivery_records - 2 * limits.consume_records
        self._last: dict[tuple[str, int], Record] = {}  # of each partition
        self._records = 0
        self._assignment = 0

    def note(self, records: Sequence[Record], *, new: int, assignment: int) -> None:
        """Note settled records that were read under `assignment`; `new` of them were not noted before."""
        if assignment != self._assignment:
            self._last.clear()
            self._records, self._assignment = 0, assignment
        self._last.update({(record.topic, record.partition): record for record in records})
        self._records += new

    def due_in_s(self, committed_at: float) -> float:
        """Return in how many seconds the next commit is due; math.inf where there is nothing to commit."""
        if not self._last:
            return math.inf
        if self._records >= self._most:
            return 0.0
        return max(0.0, committed_at + self._every_s - time.monotonic())

    def take(self, *, assignment: int) -> list[Record]:
        """Return the last settled record of each partition, for the commit; none after a rebalance."""
        taken = list(self._last.values()) if assignment == self._assignment else []
        self._last.clear()
        self._records = 0
        return taken
