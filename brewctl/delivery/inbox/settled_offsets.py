"""Offsets of records that need no redelivery: collected, and committed now and then.

Kafka writes each commit as a record, and copies it to every replica: a commit for each batch is more work for the
brokers than the batch itself. What is not committed when a process is killed comes again, and is skipped as duplicates.
"""

import math
import time
from collections.abc import Sequence

from brewctl.delivery.broker import Record
from brewctl.limits import Limits


class SettledOffsets:
    """How far one member has come since its last commit, in the partitions that it has now."""

    def __init__(self, limits: Limits) -> None:
        self._every_s = limits.offset_commit_s
        # Two batches may be in the database beyond what was noted: the one that is written, and the one before it.
        self._most = limits.redelivery_records - 2 * limits.consume_records
        self._last: dict[tuple[str, int], Record] = {}  # of each partition
        self._records = 0
        self._assignment = 0

    def note(self, records: Sequence[Record], *, new: int, assignment: int) -> None:
        """Note settled records, so many of them for the first time, which were read by an assignment of partitions."""
        if assignment != self._assignment:
            self._last.clear()
            self._records, self._assignment = 0, assignment
        self._last.update({(record.topic, record.partition): record for record in records})
        self._records += new

    def due_in_s(self, committed_at: float) -> float:
        """Say in how many seconds a commit is due, by when the last one was; math.inf where nothing is settled."""
        if not self._last:
            return math.inf
        if self._records >= self._most:
            return 0.0
        return max(0.0, committed_at + self._every_s - time.monotonic())

    def take(self, *, assignment: int) -> list[Record]:
        """Return the last settled record of each partition, to be committed; none where others are assigned by now."""
        taken = list(self._last.values()) if assignment == self._assignment else []
        self._last.clear()
        self._records = 0
        return taken
