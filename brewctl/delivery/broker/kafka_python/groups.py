"""Consumer groups, as the library's administration client describes them."""

from dataclasses import dataclass
from typing import Any

from brewctl.errors import BrewError


@dataclass(frozen=True, slots=True)
class GroupMember:
    """A member of a consumer group and the partitions of our topic that it owns."""

    client_id: str
    partitions: tuple[int, ...]
    host: str


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group. `state` is Kafka's word: Stable, PreparingRebalance, CompletingRebalance, Empty, or Dead.

    Kafka also answers Dead for a group that never existed, and for a group of its newer protocol: this client speaks
    the older one, and is not told the members.
    """

    name: str
    state: str
    assignor: str  # empty if the group has no members
    members: tuple[GroupMember, ...]  # by client_id

    @property
    def owners(self) -> dict[int, str]:
        """The client id of the owner of each partition; a partition without an owner is left out."""
        return {partition: member.client_id for member in self.members for partition in member.partitions}


def group_of(described: Any, topic: str) -> Group:
    """Return the group of a description, with the partitions of the topic that each member owns."""
    members = []
    for member in described.members:
        assignment = member.member_assignment
        owned = dict(assignment.assignment) if assignment else {}
        members.append(
            GroupMember(member.client_id, tuple(sorted(owned.get(topic, ()))), member.client_host.removeprefix("/"))
        )
    members.sort(key=lambda member: member.client_id)
    return Group(described.group, described.state, described.protocol, tuple(members))


def live_members(group: str) -> BrewError:
    """Return the error of a change to a group that Kafka allows only while the group has no members."""
    hint = "stop the members that `brewctl groups` names; a killed one is a member until its session ends"
    return BrewError(f"consumer group {group} has live members", hint=hint)
