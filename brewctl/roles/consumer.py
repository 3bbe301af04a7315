"""A consumer: runs any downstream. Many replicas, one group.

Kafka ──the downstream's group──► this node's partitions
                                    └──one commit: processed_events + the effects──► the downstream's PostgreSQL

No consumer knows of another: each has a group of its own on the same topic.
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
    """Consume until `stop` is set, as the downstream that `name`, its MODULE:NAME, is; `health` hears how it is.

    Raises UnreachableError or BrewError where it can't start: its database has no tables of it, or its group is
    another downstream's; and what its lifespan raises.
    """
    with downstream.alive(node):
        _run(settings, downstream, stop, name=name, node=node, health=health)


def _run(
    settings: Settings, downstream: Downstream, stop: threading.Event, *, name: str, node: str, health: Health | None
) -> None:
    registration.check(settings, downstream, name)
    own = registration.home(settings, downstream, name)
    tables = registration.tables(settings, own, downstream)
    # Its row in `nodes` is in the story's database, which may be away.
    here = own.database_url == settings.database_url
    needs = [
        "inbox",
        *(["replica"] if here else []),
        *(["lanes"] if downstream.lanes else []),
        *([downstream.group] if registry.is_own(name) else []),
    ]
    full = registry.full_name(name)
    consume(settings, downstream, stop, node=node, name=full, own=own, tables=tables, needs=needs, health=health)
