"""A record of an order's event, good or spoilt, and how it is read."""

from collections.abc import Mapping
from typing import Any

from brewctl.delivery import events
from brewctl.delivery.events import Decoder, Event, Headers
from brewctl.proto.orders_pb2 import ORDER_STATUS_NEW, OrderCreated

ORDER_ID = "7f3c1de6-3f0c-4d62-9a8d-0f4c8f7f3a11"


ORDER = OrderCreated(
    order_id=ORDER_ID,
    customer_id="Zoë ☕",
    amount_cents=450,
    currency="EUR",
    status=ORDER_STATUS_NEW,
    trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
    tenant_id="brew",
)


PAYLOAD = ORDER.SerializeToString()


KEY = events.aggregate_id(ORDER_ID)


HEADERS = events.order_headers(42, ORDER, node="order-1")


EVENT_ID = "0b6f4f5e-2f8e-4a51-9a3c-5b6f0c1d2e3f"


BOTH = {name.encode(): decoder for name, decoder in events.DECODERS.items()}


CREATED = {b"order.created": events.parse_order}


def read(
    value: bytes | None,
    headers: Headers,
    *,
    key: bytes | None = KEY.encode(),
    decoders: Mapping[bytes, Decoder] = CREATED,
) -> Event[Any] | None:
    """Read a record with the key of the order."""
    return events.read(key, value, headers, 1_000, decoders=decoders)


def headers(**changed: bytes | None) -> Headers:
    """Good headers but for these (`outbox_id=b"0"`); None leaves one out."""
    changes = {name.replace("_", "-"): value for name, value in changed.items()}
    merged = [(name, changes.get(name, value)) for name, value in HEADERS]
    return [(name, value) for name, value in merged if value is not None]
