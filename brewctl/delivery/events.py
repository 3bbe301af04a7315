"""Converts between events and Kafka records: headers of outbox columns, and a record read as an event. No I/O here.

An event is identified by its outbox id and its event id. A record without an event id (from another producer, or an
older version) is identified by its outbox id alone, and counts as a repeat of any event with that outbox id.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, NamedTuple, TypeVar

from google.protobuf.message import DecodeError

from brewctl.proto.orders_pb2 import OrderCancelled, OrderCreated

Headers = list[tuple[str, bytes]]
Data_co = TypeVar("Data_co", covariant=True)
Decoder = Callable[[bytes], Any]

ORDER_CREATED = "order.created"
ORDER_CANCELLED = "order.cancelled"
CONTENT_TYPE = "application/x-protobuf"
_CONTENT_TYPE = CONTENT_TYPE.encode()
_HEX = b"0123456789abcdefABCDEF"
_UUID_LENGTH = 36
_NUMBER = re.compile(r"[1-9][0-9]{0,18}")
_MOST = 2**63 - 1  # PostgreSQL's bigint
_DIGITS = 19  # the digits of _MOST: a number with fewer is smaller
_ZERO = ord("0")
_new = tuple.__new__
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class UnreadableError(Exception):
    """The record is no event, and no retry can change that. The message is the reason."""


class Event(NamedTuple, Generic[Data_co]):
    """One event of the topic, as a downstream's handler gets it.

    `id` stays the same over redeliveries: use it as the idempotency key for all that a handler does outside its
    transaction, which happens at least once. It is None where the producer gave none: then use `outbox_id`.
    """

    outbox_id: int
    id: str | None  # a UUID
    type: str
    key: str  # the aggregate's id
    seq: int | None  # 1, 2, 3 … within the aggregate; None if the producer gave none
    data: Data_co  # the decoded payload; its bytes if the type has no decoder
    raw: bytes  # the payload's bytes
    headers: Headers
    timestamp_ms: int  # of the record, since 1970

    @property
    def tenant_id(self) -> str:
        """The tenant that the event belongs to; empty if the producer gave none."""
        return dict(self.headers).get("tenant-id", b"").decode(errors="replace")

    @property
    def trace_id(self) -> str:
        """The trace that the event is part of; empty if the producer gave none."""
        return dict(self.headers).get("trace-id", b"").decode(errors="replace")

    @property
    def occurred_at(self) -> datetime:
        """When it happened, by its payload; else when its record was sent, by PostgreSQL's clock. In UTC."""
        if (value := self._time) is not None:
            return value.ToDatetime(tzinfo=UTC)  # type: ignore[no-any-return]
        return _EPOCH + timedelta(milliseconds=self.timestamp_ms)

    @property
    def occurred_s(self) -> float:
        """`occurred_at` in seconds since 1970, at a fraction of the cost."""
        if (value := self._time) is not None:
            return float(value.seconds + value.nanos / 1e9)
        return self.timestamp_ms / 1000

    @property
    def _time(self) -> Any:
        for name in ("created_at", "cancelled_at", "occurred_at"):
            if hasattr(value := getattr(self.data, name, None), "ToDatetime"):
                return value
        return None


def order_headers(outbox_id: int, order: OrderCreated, *, node: str) -> Headers:
    """Return the headers of an order's record, as a producer without event ids writes them."""
    return headers_for(
        outbox_id,
        aggregate_id(order.order_id),
        ORDER_CREATED,
        node=node,
        tenant_id=order.tenant_id,
        trace_id=order.trace_id,
    )


def is_uuid(text: str) -> bool:
    """Tell whether a text is a UUID with dashes, which PostgreSQL reads too."""
    return _is_uuid(text.encode(errors="replace"))


def _is_uuid(raw: bytes) -> bool:
    # A regular expression takes twice as long, and each event has two UUIDs. Bytes 8, 13, 18 and 23 are dashes.
    return len(raw) == _UUID_LENGTH and raw.translate(None, _HEX) == raw[8:24:5] == b"----"


def aggregate_id(order_id: str) -> str:
    """Return the aggregate of an order: record key, `aggregate-id` header and outbox column."""
    return f"order-{order_id}"


def parse_order(payload: bytes) -> OrderCreated:
    """Parse a payload. Raises UnreadableError where it is no OrderCreated with an order id."""
    try:
        order = OrderCreated.FromString(payload)
    except DecodeError:
        raise UnreadableError("payload is not an OrderCreated") from None
    # Empty bytes, and many messages of other types, parse as a message without fields.
    if not _is_uuid(order.order_id.encode()):
        raise UnreadableError("payload has no order_id that is a UUID")
    return order


def parse_cancelled(payload: bytes) -> OrderCancelled:
    """Parse a payload. Raises UnreadableError where it is no OrderCancelled with an order id."""
    try:
        cancelled = OrderCancelled.FromString(payload)
    except DecodeError:
        raise UnreadableError("payload is not an OrderCancelled") from None
    if not is_uuid(cancelled.order_id):
        raise UnreadableError("payload has no order_id that is a UUID")
    return cancelled


# The messages of the story's own events, and their decoders.
MESSAGES: Mapping[str, Any] = {ORDER_CREATED: OrderCreated, ORDER_CANCELLED: OrderCancelled}
DECODERS: Mapping[str, Decoder] = {
    ORDER_CREATED: parse_order,
    ORDER_CANCELLED: parse_cancelled,
}


def headers_for(
    outbox_id: int,
    key: str,
    event_type: str,
    *,
    node: str,
    tenant_id: str | None = None,
    trace_id: str | None = None,
    event_id: object = None,
    seq: int | None = None,
    traceparent: str | None = None,
    content_type: str | None = None,
) -> Headers:
    """Return a record's headers in the contract's order: seven, then those of the last three that have a value.

    `node`: the publishing replica.
    """
    headers = [
        ("outbox-id", str(outbox_id).encode()),
        ("aggregate-id", key.encode()),
        ("publisher-node", node.encode()),
        ("trace-id", (trace_id or "").encode()),
        ("tenant-id", (tenant_id or "").encode()),
        ("event-type", event_type.encode()),
        ("content-type", (content_type or CONTENT_TYPE).encode()),
    ]
    if event_id is not None:
        headers.append(("event-id", str(event_id).encode()))
    if seq is not None:
        headers.append(("aggregate-seq", str(seq).encode()))
    if traceparent is not None:
        headers.append(("traceparent", traceparent.encode()))
    return headers


def read(
    key: bytes | None,
    value: bytes | None,
    headers: Headers,
    timestamp_ms: int = -1,
    *,
    decoders: Mapping[bytes, Decoder],
) -> Event[Any] | None:
    """Read a record as an event; None if `decoders` has no decoder for its type.

    Raises UnreadableError with the reason if it is no event.
    """
    by_name = dict(headers)
    # Headers are compared as bytes: only a wrong one is decoded, for the message.
    get = by_name.get
    raw_type = get("event-type", b"")
    decoder = decoders.get(raw_type)
    if decoder is None:
        _text(by_name, "event-type")
        return None
    own = raw_type.decode()
    if get("content-type") != _CONTENT_TYPE and own in DECODERS:
        raise UnreadableError(f"content-type is {_text(by_name, 'content-type')[:80]!r}, not {CONTENT_TYPE}")
    # Most numbers are short and have only digits; `_number` checks the others.
    raw = get("outbox-id", b"")
    outbox_id = int(raw) if raw.isdigit() and len(raw) < _DIGITS and raw[0] != _ZERO else _number(by_name, "outbox-id")
    event_id = seq = None
    if (raw_id := get("event-id")) is not None:
        if not _is_uuid(raw_id):
            raise UnreadableError(f"event-id is {_text(by_name, 'event-id')[:80]!r}, not a UUID")
        event_id = raw_id.lower().decode()
    if (raw_seq := get("aggregate-seq")) is not None:
        plain = raw_seq.isdigit() and len(raw_seq) < _DIGITS and raw_seq[0] != _ZERO
        seq = int(raw_seq) if plain else _number(by_name, "aggregate-seq")
    name = _key(key or get("aggregate-id", b""))
    if not value and (value is None or own in DECODERS):  # a message of another type may have no fields
        raise UnreadableError("value is empty")
    try:
        data = decoder(value)
    except UnreadableError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise UnreadableError(f"payload is no {own} ({type(error).__name__}: {said})") from error
    # The same as Event(…), without its Python call.
    return _new(Event, (outbox_id, event_id, own, name, seq, data, value, headers, timestamp_ms))


def _key(raw: bytes) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise UnreadableError("key is not UTF-8") from None
    if not text or "\0" in text:
        raise UnreadableError("key is missing" if not text else "key has a NUL")
    return text


def _number(headers: dict[str, bytes], name: str) -> int:
    text = _text(headers, name)
    if not _NUMBER.fullmatch(text) or int(text) > _MOST:
        raise UnreadableError(f"{name} is {text[:80]!r}, not a positive 64-bit number")
    return int(text)


def _text(headers: dict[str, bytes], name: str) -> str:
    raw = headers.get(name)
    if raw is None:
        raise UnreadableError(f"header {name} is missing")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise UnreadableError(f"header {name} is not UTF-8") from None
