"""Brew orders: a transactional outbox, Kafka and idempotent consumers, as one command."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brewctl.delivery.downstream import Later, Reject, downstream
    from brewctl.delivery.events import Event
    from brewctl.proto.orders_pb2 import OrderCancelled, OrderCreated

__all__ = ["Event", "Later", "OrderCancelled", "OrderCreated", "Reject", "downstream"]

__version__ = "0.1.0"

# Imported when they are asked for: a command that needs none of them starts sooner.
_HOMES = {
    "Event": "brewctl.delivery.events",
    "Later": "brewctl.delivery.downstream",
    "OrderCancelled": "brewctl.proto.orders_pb2",
    "OrderCreated": "brewctl.proto.orders_pb2",
    "Reject": "brewctl.delivery.downstream",
    "downstream": "brewctl.delivery.downstream",
}


def __getattr__(name: str) -> Any:
    """Import what a downstream's module is made of."""
    if home := _HOMES.get(name):
        return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
