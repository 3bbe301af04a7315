"""A member's offsets: handed out, committed, and reached without a record to commit."""

from collections.abc import Callable, Mapping, Sequence

from brewctl.delivery.broker.record import Record


class MemberProgress:
    """The offsets of one assignment, by partition. Each is the offset of the next record to read."""

    def __init__(self) -> None:
        self.next: dict[int, int] = {}  # where reading goes on
        self._out: dict[int, int] = {}  # after the last record that was handed out, if it is not committed
        self._committed: dict[int, int] = {}
        self._ends: dict[int, int] = {}  # the end of each partition that was read to its end
        self._highs: dict[int, int] = {}  # the end then, with the records of transactions that were still open

    def begin(self, starts: Mapping[int, int], committed: Mapping[int, int]) -> None:
        """Begin an assignment. Uncommitted records of the one before are forgotten: Kafka delivers them again."""
        self.next = dict(starts)
        self._committed = dict(committed)
        self._out.clear()
        self._ends.clear()
        self._highs.clear()

    def hand_out(self, records: Sequence[Record]) -> None:
        """Note records that the caller gets."""
        ends = {record.partition: record.offset + 1 for record in records}
        self.next |= ends
        self._out |= ends

    def reach(self, partition: int, end: int, *, high: int) -> None:
        """Note that there is no record left before `end`, only markers and aborted records.

        `high`: the end including the records of transactions that are still open.
        """
        self._ends[partition] = end
        self._highs[partition] = high
        self.next[partition] = max(end, self.next.get(partition, 0))

    def put_back(self, partition: int, first: int) -> None:
        """Note that reading goes on at `first`, because the next record was removed from the partition."""
        self.next[partition] = first
        self._ends.pop(partition, None)

    def is_behind(self, end_of: Callable[[int], int]) -> bool:
        """Say whether a partition has grown since its end was reached, or has records that were not handed out."""
        return any(end_of(each) > max(at, self._highs.get(each, 0)) for each, at in self.next.items())

    def commit(self, ends: Mapping[int, int]) -> None:
        """Note offsets that were committed."""
        self._committed |= ends
        for partition, end in ends.items():
            if self._out.get(partition, 0) <= end:
                self._out.pop(partition, None)

    def uncommitted(self) -> dict[int, int]:
        """Return reached ends that are worth a commit; none while a record that was handed out is uncommitted."""
        if self._out:
            return {}
        return {each: end for each, end in self._ends.items() if end != self._committed.get(each, 0)}
