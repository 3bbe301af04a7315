"""inventory-service: reserves the ingredients of each order once. Many replicas, one group.

Kafka ──group "inventory"──► this node's partitions
                               └──one commit: processed_events + inventory_reservations──► PostgreSQL
"""

import threading

from brewctl.config import Settings
from brewctl.delivery.consumption import consume
from brewctl.delivery.inbox import Projection

PROJECTION = Projection(service="inventory-service", consumer="inventory", effect="reserve", done="reserved")


def run(settings: Settings, stop: threading.Event, *, node: str) -> None:
    """Consume until `stop` is set. Raises UnreachableError or BrewError where it can't start."""
    consume(settings, PROJECTION, stop, node=node)
