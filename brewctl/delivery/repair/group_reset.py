"""Resets a consumer group's committed offsets, back or forward."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from brewctl.delivery.broker import Admin
from brewctl.delivery.topics.group_progress import progress
from brewctl.errors import BrewError


class Where(StrEnum):
    """The kinds of targets of a reset."""

    EARLIEST = "earliest"
    LATEST = "latest"
    OFFSET = "offset"
    TIME = "time"


@dataclass(frozen=True)
class Target:
    """Where a group is to continue, in every partition."""

    where: Where
    value: int = 0  # an offset, or a time in milliseconds since the epoch


@dataclass(frozen=True)
class Move:
    """The change of a group's offset in one partition."""

    partition: int
    committed: int | None
    before: int
    after: int
    outside: bool  # the partition does not have the offset that was asked for; `after` is the nearest

    @property
    def distance(self) -> int:
        """How many offsets forward; negative: back."""
        return self.after - self.before


def plan(admin: Admin, name: str, topic: str, target: Target) -> list[Move]:
    """Return the changes of a reset. An offset that a partition does not have becomes the nearest that it has.

    Raises BrewError where there is no such group, it has live members, or there is no such topic.
    """
    if name not in admin.groups():
        raise BrewError(f"no consumer group {name} in kafka", hint="see `brewctl groups`")
    group = admin.group(name, topic)
    if group.members:
        members = ", ".join(member.client_id for member in group.members)
        raise BrewError(f"consumer group {name} has live members: {members}", hint="stop them first")
    now = progress(group, admin.committed(name, topic), admin.ends(topic))
    at_time = admin.offsets_at(topic, target.value) if target.where is Where.TIME else {}
    moves = []
    for each in now:
        wanted = {
            Where.EARLIEST: each.first,
            Where.LATEST: each.end,
            Where.OFFSET: target.value,
            Where.TIME: at_time.get(each.partition, each.end),
        }[target.where]
        after = min(max(wanted, each.first), each.end)
        outside = target.where is Where.OFFSET and after != wanted
        moves.append(Move(each.partition, each.committed, each.position, after, outside))
    return moves


def reset(admin: Admin, name: str, topic: str, moves: list[Move]) -> None:
    """Commit the planned offsets, and read them back.

    Raises BrewError where the group has live members by now, or its offsets have changed since the plan.
    """
    wanted = {move.partition: move.after for move in moves}
    _require(admin, name, topic, {move.partition: move.committed for move in moves})
    admin.commit(name, topic, wanted)
    _require(admin, name, topic, wanted)


def _require(admin: Admin, name: str, topic: str, offsets: Mapping[int, int | None]) -> None:
    found = admin.committed(name, topic)
    if moved := [partition for partition, offset in offsets.items() if found.get(partition) != offset]:
        raise BrewError(
            f"consumer group {name} has moved meanwhile, in partitions {moved}",
            hint="stop its consumers, and see `brewctl groups`",
        )
