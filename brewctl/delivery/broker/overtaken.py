"""Records that a group never reads: removed before it came to them, or gone where their partition was cut off.

A member that finds its offset outside of the partition goes on at the first record there is: to stop there would lose
more to the same retention, and the rows of what is gone can be published again. It is said loudly, for nothing else
would tell: such a group has no lag.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from brewctl import log

logger = log.get(__name__)

REPUBLISH = "brewctl outbox republish --missing"


@dataclass(frozen=True, slots=True)
class Overtaken:
    """A partition in which a group goes on at the first record there is, and not where it was."""

    partition: int
    wanted: int | None  # the offset that it would have read next; None: it has committed none in this partition
    first: int
    new: bool = False  # it has committed none in any partition: it begins, and has lost nothing that it had been given

    @property
    def removed(self) -> int:
        """How many records are gone that it has not read; 0 where the partition was cut off: nobody knows then."""
        return max(0, self.first - (self.wanted or 0))


Told = Callable[[Sequence[Overtaken]], None]


def nobody(_found: Sequence[Overtaken]) -> None:
    """Tell nobody."""


def tell(group: str, found: Sequence[Overtaken]) -> None:
    """Log it: an error for each partition in which records were lost, a warning where the group only begins late."""
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
            hint=f"publish again what the outbox still has of them: `{REPUBLISH}`",
        )


def _lost(each: Overtaken) -> tuple[str, str]:
    hint = f"it goes on at the first; publish what it missed again: `{REPUBLISH}`"
    if not each.removed:
        reason = "the partition ends before: it was truncated, or its topic made anew, and records are gone"
    else:
        begins, last = each.wanted or 0, each.first - 1
        reason = f"{each.removed} records are gone, offsets {begins} to {last}: "
        reason += "retention removed them before they were read"
    return reason, hint
