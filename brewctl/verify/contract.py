"""What a record of the topic must look like, written out from the contract.

Shares no code with the publisher and the consumers: a mistake in a function of theirs would be made here as well, and
both sides would agree on it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from brewctl.delivery.broker import Record
from brewctl.proto.orders_pb2 import OrderCreated

Headers = Sequence[tuple[str, bytes]]

HEADERS = (
    "outbox-id",
    "aggregate-id",
    "publisher-node",
    "trace-id",
    "tenant-id",
    "event-type",
    "content-type",
)
_EVENT_TYPE = b"order.created"
_CONTENT_TYPE = b"application/x-protobuf"
_UUID = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_ORDER_ID = re.compile(_UUID)
_AGGREGATE = re.compile(f"order-({_UUID})")
_OUTBOX_ID = re.compile(rb"[1-9][0-9]{0,18}")
_BIGINT = 2**63 - 1
_NODE = re.compile(rb"[A-Za-z0-9._-]+")
_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_SHOWN_CHARACTERS = 120


@dataclass(frozen=True, slots=True)
class Row:
    """What the outbox says of an event, and where Kafka acknowledged its newest record."""

    outbox_id: int
    aggregate_id: str
    topic: str
    payload: bytes
    publisher_node: str | None
    partition: int | None
    offset: int | None


@dataclass(frozen=True, slots=True)
class Reading:
    """What a record is to a consumer: an order's event, an event of another type (no id), or unreadable (no id)."""

    outbox_id: int | None = None
    order: OrderCreated | None = None
    unreadable: bool = False


_OTHER = Reading()
_UNREADABLE = Reading(unreadable=True)


def read(value: bytes | None, headers: Headers) -> Reading:
    """Tell what a record is, as the contract has it."""
    said = dict(headers)
    event_type, outbox_id = said.get("event-type"), said.get("outbox-id", b"")
    if event_type is None or not _is_text(event_type):
        return _UNREADABLE
    if event_type != _EVENT_TYPE:
        return _OTHER
    if said.get("content-type") != _CONTENT_TYPE or not _OUTBOX_ID.fullmatch(outbox_id) or int(outbox_id) > _BIGINT:
        return _UNREADABLE
    order = parse(value or b"")
    return Reading(int(outbox_id), order) if order else _UNREADABLE


def parse(payload: bytes) -> OrderCreated | None:
    """Parse a payload; None where it is no order's."""
    try:
        order = OrderCreated.FromString(payload)
    except DecodeError:
        return None
    return order if _ORDER_ID.fullmatch(order.order_id) else None


def order_of(aggregate_id: str) -> str | None:
    """Return the order's id in an aggregate's name, as PostgreSQL writes it; None where there is none."""
    match = _AGGREGATE.fullmatch(aggregate_id)
    return match[1].lower() if match else None


def headers_differ(record: Record, row: Row, order: OrderCreated, tenant: str | None) -> str:
    """Say how a record's headers differ from the contract's; "" where they don't.

    `order` is the row's payload. `tenant` is the order's own, None where there is no such order: then the payload's
    counts.
    """
    names = tuple(name for name, _ in record.headers)
    if names != HEADERS:
        return f"its headers are {shown(', '.join(names))}"
    expected = {
        "outbox-id": str(row.outbox_id),
        "aggregate-id": row.aggregate_id,
        "trace-id": order.trace_id,
        "tenant-id": order.tenant_id if tenant is None else tenant,
        "event-type": "order.created",
        "content-type": "application/x-protobuf",
    }
    node = dict(record.headers)["publisher-node"]
    if not _NODE.fullmatch(node):
        return f"publisher-node is {shown(node)}, no node's name" if node else "publisher-node is empty"
    if row.publisher_node is not None and (row.partition, row.offset) == (record.partition, record.offset):
        expected["publisher-node"] = row.publisher_node
    for name, value in record.headers:
        if name in expected and value != expected[name].encode("utf-8"):
            return f"{name} is {shown(value)}, not {shown(expected[name])}"
    if not _TRACE_ID.fullmatch(order.trace_id):
        return f"trace-id is {shown(order.trace_id)}, no W3C trace id" if order.trace_id else "trace-id is empty"
    return ""


def shown(value: bytes | str | None) -> str:
    """Shorten foreign text for a line."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
