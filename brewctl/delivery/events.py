"""OrderCreated as the topic carries it: key, value and headers, both ways. Pure: no I/O here."""

import re
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from brewctl.proto.orders_pb2 import OrderCreated

Headers = list[tuple[str, bytes]]

EVENT_TYPE = "order.created"
CONTENT_TYPE = "application/x-protobuf"
_EVENT_TYPE, _CONTENT_TYPE = EVENT_TYPE.encode(), CONTENT_TYPE.encode()
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_OUTBOX_ID = re.compile(r"[1-9][0-9]{0,18}")
_MAX_OUTBOX_ID = 2**63 - 1  # PostgreSQL's bigint


@dataclass(frozen=True, slots=True)
class Event:
    """One readable record: `outbox_id` is what a consumer deduplicates by."""

    outbox_id: int
    order: OrderCreated


class UnreadableError(Exception):
    """A record, or an outbox row, that is no OrderCreated and never will be. The message is the reason."""


def is_uuid(text: str) -> bool:
    """Say whether a text is a UUID as PostgreSQL, and not just Python, reads it."""
    return _UUID.fullmatch(text) is not None


def aggregate_id(order_id: str) -> str:
    """Return the aggregate's name: record key, `aggregate-id` header and outbox column."""
    return f"order-{order_id}"


def parse_order(payload: bytes) -> OrderCreated:
    """Parse a payload. Raises UnreadableError where it is no OrderCreated with an order id."""
    try:
        order = OrderCreated.FromString(payload)
    except DecodeError:
        raise UnreadableError("payload is not an OrderCreated") from None
    # Empty bytes, and many a foreign message, parse as a message with nothing in it.
    if not is_uuid(order.order_id):
        raise UnreadableError("payload has no order_id that is a UUID")
    return order


def headers_for(outbox_id: int, key: str, order: OrderCreated, *, node: str) -> Headers:
    """Return the contract's seven headers in the contract's order. `node` is the publishing replica."""
    pairs = (
        ("outbox-id", str(outbox_id)),
        ("aggregate-id", key),
        ("publisher-node", node),
        ("trace-id", order.trace_id),
        ("tenant-id", order.tenant_id),
        ("event-type", EVENT_TYPE),
        ("content-type", CONTENT_TYPE),
    )
    return [(name, value.encode()) for name, value in pairs]


def read_record(value: bytes | None, headers: Headers) -> Event | None:
    """Read a record of the topic; None where it is an event of another type, which is not ours to judge.

    Raises UnreadableError with the reason where it can never be handled.
    """
    by_name = dict(headers)
    # Compared as bytes: what is right needs no decoding, and what is wrong is looked at more closely.
    if by_name.get("event-type") != _EVENT_TYPE:
        _text(by_name, "event-type")
        return None
    if by_name.get("content-type") != _CONTENT_TYPE:
        raise UnreadableError(f"content-type is {_text(by_name, 'content-type')[:80]!r}, not {CONTENT_TYPE}")
    outbox_id = _text(by_name, "outbox-id")
    if not _OUTBOX_ID.fullmatch(outbox_id) or int(outbox_id) > _MAX_OUTBOX_ID:
        raise UnreadableError(f"outbox-id is {outbox_id[:80]!r}, not a positive 64-bit number")
    if not value:
        raise UnreadableError("value is empty")
    return Event(int(outbox_id), parse_order(value))


def _text(headers: dict[str, bytes], name: str) -> str:
    raw = headers.get(name)
    if raw is None:
        raise UnreadableError(f"header {name} is missing")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise UnreadableError(f"header {name} is not UTF-8") from None
