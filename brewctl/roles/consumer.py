"""The consumer role: runs any downstream, as one of many nodes of its group.

    Kafka ──the downstream's group──► this node's partitions
                                        └──one commit: processed_events + the effects──► the downstream's PostgreSQL

Each downstream has a group of its own on the same topic.
"""

import threading

from brewctl.config import Settings
from brewctl.delivery import registry
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.inbox.node import consume
from brewctl.delivery.schema import registration
from brewctl.probes.health import Health


def run(
    settings: Settings,
    downstream: Downstream,
    stop: threading.Event,
    *,
    name: str,
    node: str,
    health: Health | None = None,
) -> None:
    """Consume until `stop` is set. `name`: the downstream's MODULE:NAME. `health` gets its checks.

    Raises UnreachableError if a server is away, BrewError if its database lacks its tables or its group is another
    downstream's, and what its lifespan raises.
    """
    with downstream.alive(node):
        _run(settings, downstream, stop, name=name, node=node, health=health)


def _run(
    settings: Settings, downstream: Downstream, stop: threading.Event, *, name: str, node: str, health: Health | None
) -> None:
    registration.check(settings, downstream, name)
    own = registration.home(settings, downstream, name)
    tables = registration.tables(settings, own, downstream)
    # The node's row in `nodes` is in the story's database: rights to it are needed here only if this is that one.
    here = own.database_url == settings.database_url
    needs = [
        "inbox",
        *(["replica"] if here else []),
        *(["lanes"] if downstream.lanes else []),
        *([downstream.group] if registry.is_own(name) else []),
    ]
    full = registry.full_name(name)
    consume(settings, downstream, stop, node=node, name=full, own=own, tables=tables, needs=needs, health=health)
