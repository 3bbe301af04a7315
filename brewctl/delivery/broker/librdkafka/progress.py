"""How far a member has come: what is handed out, what is committed, and where there is no record to commit."""

from collections.abc import Callable, Mapping, Sequence

from brewctl.delivery.broker.record import Record


class MemberProgress:
    """Of one assignment, by partition. Each number is the offset that is read next."""

    def __init__(self) -> None:
        self.next: dict[int, int] = {}  # behind what was handed out, at first where reading begins
        self._out: dict[int, int] = {}  # behind what was handed out and is not committed
        self._committed: dict[int, int] = {}
        self._ends: dict[int, int] = {}  # where there was nothing more to read
        self._highs: dict[int, int] = {}  # the end then, with the records of transactions that were still open

    def begin(self, starts: Mapping[int, int], committed: Mapping[int, int]) -> None:
        """Begin an assignment: records of an earlier one come again."""
        self.next = dict(starts)
        self._committed = dict(committed)
        self._out.clear()
        self._ends.clear()
        self._highs.clear()

    def hand_out(self, records: Sequence[Record]) -> None:
        """Note records that were read."""
        ends = {record.partition: record.offset + 1 for record in records}
        self.next |= ends
        self._out |= ends

    def reach(self, partition: int, end: int, *, high: int) -> None:
        """Note that there is nothing to read before `end`: what is there are markers, or what was aborted.

        `high`: the end with the records of transactions that are still open.
        """
        self._ends[partition] = end
        self._highs[partition] = high
        self.next[partition] = max(end, self.next.get(partition, 0))

    def put_back(self, partition: int, first: int) -> None:
        """Note where reading begins again: what was next is not in the partition any more."""
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
        """Return the ends that are not what is committed, though no record before them is out."""
        if self._out:
            return {}
        return {each: end for each, end in self._ends.items() if end != self._committed.get(each, 0)}
