"""Consumer groups as Kafka describes them: their members, the partitions that each owns, and the lag."""

from collections.abc import Iterable
from dataclasses import dataclass

from brewctl.config import Settings
from brewctl.delivery import registry
from brewctl.delivery.broker import Admin, GroupMember
from brewctl.delivery.topics import group_progress
from brewctl.delivery.topics.group_progress import GroupProgress


@dataclass(frozen=True)
class GroupView:
    """A group, with its progress in each partition of the topic."""

    name: str
    state: str  # Kafka's word, as in broker.Group
    assignor: str
    members: tuple[GroupMember, ...]
    partitions: tuple[GroupProgress, ...]

    @property
    def positions(self) -> dict[int, int]:
        """The offset that it reads next, by partition."""
        return {partition.partition: partition.position for partition in self.partitions}

    @property
    def lag(self) -> int:
        """How many offsets it has still to read, over all partitions."""
        return sum(partition.lag for partition in self.partitions)


def groups(admin: Admin, settings: Settings, names: Iterable[str] | None = None) -> list[GroupView]:
    """Describe these groups, default: those of the downstreams. A group that never existed is Dead, with a full lag.

    Four round trips for each group and two for all. Raises UnreachableError; BrewError if the topic does not exist.
    """
    # The ends are read after the offsets: records that come in between make a lag a little too large, never negative.
    topic = settings.topic
    names = registry.kafka_groups(settings) if names is None else names
    known = [(admin.group(name, topic), admin.committed(name, topic)) for name in names]
    ends = admin.ends(topic)
    return [
        GroupView(
            group.name,
            group.state,
            group.assignor,
            group.members,
            tuple(group_progress.progress(group, committed, ends)),
        )
        for group, committed in known
    ]


def readers(admin: Admin, settings: Settings) -> list[str]:
    """Return the groups that read the topic: the downstreams', and all others that committed an offset of it."""
    own = registry.kafka_groups(settings)
    others = [name for name in admin.groups() if name not in own and admin.committed(name, settings.topic)]
    return [*own, *others]
