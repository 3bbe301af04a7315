"""A consumer group's offsets, lag and losses in each partition of the topic."""

from collections.abc import Mapping
from dataclasses import dataclass

from brewctl.delivery.broker import Group


@dataclass(frozen=True)
class GroupProgress:
    """A group's offsets in one partition."""

    partition: int
    owner: str  # client_id of the member with this partition; empty where there is none
    committed: int | None  # the committed offset, which the group reads next; None: none is committed
    first: int  # the offset of the first record that is there
    end: int  # the offset of the next record
    known: bool = False  # whether the group has committed an offset in any partition

    @property
    def position(self) -> int:
        """Where a consumer continues: at the committed offset, or at the first record where that is out of range."""
        if self.committed is None or not self.first <= self.committed <= self.end:
            return self.first
        return self.committed

    @property
    def lost(self) -> str:
        """Which records the group has lost, for a message; empty where its committed offset is in range."""
        if self.overtaken:
            return f"its records {self.committed or 0} to {self.first - 1} were removed before it read them"
        if self.committed is None or self.committed <= self.end:
            return ""
        return f"it ends at {self.end}, and {self.committed} was committed: it was truncated, or made anew"

    @property
    def overtaken(self) -> int:
        """How many records were removed before the group read them; 0 for a new group."""
        if self.committed is None and not self.known:
            return 0
        return max(0, self.first - (self.committed or 0))

    @property
    def lag(self) -> int:
        """How many offsets are still to be read."""
        return self.end - self.position


def progress(group: Group, committed: Mapping[int, int], ends: Mapping[int, tuple[int, int]]) -> list[GroupProgress]:
    """Combine a group's and the topic's offsets. Read `committed` before `ends`, or lags are too small."""
    owners = group.owners
    return [
        GroupProgress(partition, owners.get(partition, ""), committed.get(partition), first, end, bool(committed))
        for partition, (first, end) in sorted(ends.items())
    ]
