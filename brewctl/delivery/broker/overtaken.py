"""Records that a group can't read any more: retention removed them first, or their partition was truncated.

If the offset that a member wants is not in the partition, the member goes on at the partition's first record. To stop
instead would lose more records to the same retention, and the outbox rows of the lost ones can be published again. The
loss is logged, because nothing else shows it: such a group has no lag.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from brewctl import log

logger = log.get(__name__)

REPUBLISH = "brewctl outbox republish --missing"


@dataclass(frozen=True, slots=True)
class Overtaken:
    """A partition in which a group goes on at the first record, because the one that it wanted was removed."""

    partition: int
    wanted: int | None  # the offset to read next; None: the group has committed none in this partition
    first: int
    new: bool = False  # the group has no committed offset in any partition: it is new, and has missed old records only

    @property
    def removed(self) -> int:
        """How many records were removed before the group read them; 0 if the partition was truncated: then unknown."""
        return max(0, self.first - (self.wanted or 0))


Told = Callable[[Sequence[Overtaken]], None]


def nobody(_found: Sequence[Overtaken]) -> None:
    """Do nothing: the default of `on_overtaken`."""


def tell(group: str, found: Sequence[Overtaken]) -> None:
    """Log an error for each partition in which records were lost, and one warning if a new group missed old records."""
    for each in found:
        if not each.new:
            reason, hint = _lost(each)
            logger.error(
                "offset_lost",
                group=group,
                partition=each.partition,
                wanted=each.wanted,
                first=each.first,
                removed=each.removed,
                reason=reason,
                hint=hint,
            )
    if late := [each for each in found if each.new]:
        removed = sum(each.removed for each in late)
        logger.warning(
            "group_begins_late",
            group=group,
            partitions=[each.partition for each in late],
            removed=removed,
            reason=f"the group is new, and retention has removed the first {removed} records of these partitions",
            hint=f"publish those again that the outbox still has: `{REPUBLISH}`",
        )


def _lost(each: Overtaken) -> tuple[str, str]:
    hint = f"the group goes on at the first record; publish the lost ones again: `{REPUBLISH}`"
    if not each.removed:
        reason = "the partition ends before that offset: it was truncated, or its topic recreated, and records are gone"
    else:
        begins, last = each.wanted or 0, each.first - 1
        reason = f"{each.removed} records are gone, offsets {begins} to {last}: "
        reason += "retention removed them before they were read"
    return reason, hint
