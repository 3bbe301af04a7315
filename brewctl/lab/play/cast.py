"""The cast of a demo or scenario: two order-services, two nodes of the first downstream, one of each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, count

from brewctl.config import Settings, short_name
from brewctl.delivery import registry
from brewctl.delivery.downstream import Downstream
from brewctl.lab.play import nodes

ORDER_NODES = ("order-1", "order-2")


@dataclass(frozen=True)
class Cast:
    """The names of the nodes. `consumers`: those of each downstream, in the order of the settings."""

    consumers: tuple[tuple[str, ...], ...]
    commands: Mapping[str, tuple[str, ...]]  # the arguments of `brewctl` for each node, such as `consume inventory`
    sharing: Downstream  # the first downstream, which has two nodes

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of all nodes."""
        return (*ORDER_NODES, *chain.from_iterable(self.consumers))

    @property
    def peers(self) -> tuple[str, ...]:
        """The two nodes of the first downstream, which share its partitions."""
        return self.consumers[0]


def cast(settings: Settings) -> Cast:
    """Return the cast for the downstreams of the settings. Raises UsageError if one can't be found.

    The first downstream has two nodes, so that a fault of one moves its partitions to the other.
    """
    commands = dict.fromkeys(ORDER_NODES, nodes.ROLES["order"].command)
    downstreams = registry.configured(settings)
    consumers: list[tuple[str, ...]] = []
    for full, downstream in zip(settings.downstreams, downstreams, strict=True):
        role = nodes.role(short_name(full), downstream)
        free = (name for number in count(1) if (name := f"{role.stem}-{number}") not in commands)
        names = tuple(next(free) for _ in range(1 if consumers else 2))
        commands |= dict.fromkeys(names, role.command)
        consumers.append(names)
    return Cast(tuple(consumers), commands, downstreams[0])


STORY = cast(Settings())
