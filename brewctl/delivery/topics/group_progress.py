"""How far a consumer group has come in the topic."""

from collections.abc import Mapping
from dataclasses import dataclass

from brewctl.delivery.broker import Group


@dataclass(frozen=True)
class GroupProgress:
    """How far a group has come in a partition."""

    partition: int
    owner: str  # client_id of the member that has it; empty where none has
    committed: int | None  # the offset that it reads next, where it has committed one
    first: int  # of the records that are there
    end: int  # the offset that the next record will have
    known: bool = False  # the group has committed an offset in some partition

    @property
    def position(self) -> int:
        """Where a consumer goes on: at the committed offset, or at the first one where no record can be there."""
        if self.committed is None or not self.first <= self.committed <= self.end:
            return self.first
        return self.committed

    @property
    def lost(self) -> str:
        """Say what the group can't read any more, by its committed offset; empty where that is in the partition."""
        if self.overtaken:
            return f"its records {self.committed or 0} to {self.first - 1} were removed before it read them"
        if self.committed is None or self.committed <= self.end:
            return ""
        return f"it ends at {self.end}, and {self.committed} was committed: it was truncated, or made anew"

    @property
    def overtaken(self) -> int:
        """How many records were removed before the group read them. A new group has lost none: it begins later."""
        if self.committed is None and not self.known:
            return 0
        return max(0, self.first - (self.committed or 0))

    @property
    def lag(self) -> int:
        """How many offsets are still to be read."""
        return self.end - self.position


def progress(group: Group, committed: Mapping[int, int], ends: Mapping[int, tuple[int, int]]) -> list[GroupProgress]:
    """Put together how far a group has come. `committed` must be the older of the two, else lags are too small."""
    owners = group.owners
    return [
        GroupProgress(partition, owners.get(partition, ""), committed.get(partition), first, end, bool(committed))
        for partition, (first, end) in sorted(ends.items())
    ]
