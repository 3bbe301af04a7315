"""The cast: two order-services, two nodes of the first downstream, one of each other."""

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
    """The nodes by their names; `consumers`: of each downstream, in the order in which the settings name them."""

    consumers: tuple[tuple[str, ...], ...]
    commands: Mapping[str, tuple[str, ...]]  # what `brewctl` is told to be each, such as `consume inventory`
    sharing: Downstream  # the first downstream

    @property
    def nodes(self) -> tuple[str, ...]:
        """Every node."""
        return (*ORDER_NODES, *chain.from_iterable(self.consumers))

    @property
    def peers(self) -> tuple[str, ...]:
        """The nodes that share their partitions out."""
        return self.consumers[0]


def cast(settings: Settings) -> Cast:
    """Return the cast for the downstreams that the settings name. Raises UsageError for one that is not found.

    One of them at least has two nodes, which share its partitions out: a fault of one moves them to the other.
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
