"""Consumer groups as Kafka has them: who is there, who owns what, and how far behind each is."""

from collections.abc import Iterable
from dataclasses import dataclass

from brewctl.config import Settings
from brewctl.delivery import registry
from brewctl.delivery.broker import Admin, GroupMember
from brewctl.delivery.topics import group_progress
from brewctl.delivery.topics.group_progress import GroupProgress


@dataclass(frozen=True)
class GroupView:
    """A group, and how far it has come in each partition of the topic."""

    name: str
    state: str  # Kafka's word, as in broker.Group
    assignor: str
    members: tuple[GroupMember, ...]
    partitions: tuple[GroupProgress, ...]

    @property
    def positions(self) -> dict[int, int]:
        """Where it goes on, by partition."""
        return {partition.partition: partition.position for partition in self.partitions}

    @property
    def lag(self) -> int:
        """How many offsets it has still to read, over all partitions."""
        return sum(partition.lag for partition in self.partitions)


def groups(admin: Admin, settings: Settings, names: Iterable[str] | None = None) -> list[GroupView]:
    """Look at these groups, or at those of the downstreams. One that there never was is Dead, with all before it.

    Four round trips a group and two for all. Raises UnreachableError, BrewError where there is no such topic.
    """
    # Ends after offsets: what is read meanwhile makes a lag a little too large, and never negative.
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
    """Name the groups that read the topic: the downstreams', and every other that has committed an offset of it."""
    own = registry.kafka_groups(settings)
    others = [name for name in admin.groups() if name not in own and admin.committed(name, settings.topic)]
    return [*own, *others]
