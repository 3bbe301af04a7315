"""Brew orders: a transactional outbox, Kafka and idempotent consumers, as one command.

A user's own service or downstream imports what it needs from here: `from brewctl import add_event`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brewctl.delivery.downstream import Downstream, Later, Reject, downstream
    from brewctl.delivery.events import Event
    from brewctl.delivery.outbox.adding import add_event
    from brewctl.errors import UsageError
    from brewctl.proto.orders_pb2 import OrderCancelled, OrderCreated
    from brewctl.security import Secret

__version__ = "0.2.0"
__all__ = [
    "Downstream",
    "Event",
    "Later",
    "OrderCancelled",
    "OrderCreated",
    "Reject",
    "Secret",
    "UsageError",
    "add_event",
    "downstream",
]

# Imported at their first use: the command imports this package too, and `brewctl --help` needs none of them.
_MODULES = {
    "Downstream": "delivery.downstream",
    "Event": "delivery.events",
    "Later": "delivery.downstream",
    "OrderCancelled": "proto.orders_pb2",
    "OrderCreated": "proto.orders_pb2",
    "Reject": "delivery.downstream",
    "Secret": "security",
    "UsageError": "errors",
    "add_event": "delivery.outbox.adding",
    "downstream": "delivery.downstream",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
