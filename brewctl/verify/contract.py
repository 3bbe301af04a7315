"""What a record of the topic must look like, written out from the contract.

Shares no code with the publisher and the consumers. With a shared function, a mistake in it would be on both sides, and
the comparison would not find it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from brewctl.delivery.broker import Record
from brewctl.proto.orders_pb2 import OrderCancelled, OrderCreated

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
# They follow the seven, in this order, where the row has a value.
FURTHER = ("event-id", "aggregate-seq", "traceparent")
CREATED, CANCELLED = "order.created", "order.cancelled"
_CONTENT_TYPE = b"application/x-protobuf"
_UUID = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_ORDER_ID = re.compile(_UUID)
_AGGREGATE = re.compile(f"order-({_UUID})")
_EVENT_ID = re.compile(_UUID.encode())
_NUMBER = re.compile(rb"[1-9][0-9]{0,18}")
_BIGINT = 2**63 - 1
_NODE = re.compile(rb"[A-Za-z0-9._-]+")
_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_SHOWN_CHARACTERS = 120


Said = OrderCreated | OrderCancelled
_MESSAGES: dict[str, type[Said]] = {CREATED: OrderCreated, CANCELLED: OrderCancelled}


@dataclass(frozen=True, slots=True)
class Row:
    """An outbox row: an event, and the partition and offset at which Kafka acknowledged its newest record.

    The previous version wrote only the fields without a default: such a row is an order.created event, whose payload
    has the rest.
    """

    outbox_id: int
    aggregate_id: str
    topic: str
    payload: bytes
    publisher_node: str | None
    partition: int | None
    offset: int | None
    event_type: str | None = None
    event_id: str | None = None
    seq: int | None = None
    tenant_id: str | None = None
    trace_id: str | None = None
    traceparent: str | None = None
    content_type: str | None = None

    @property
    def type(self) -> str:
        """The event type; order.created where the row has none."""
        return self.event_type or CREATED


@dataclass(frozen=True, slots=True)
class Reading:
    """A record as a consumer must read it: an event (`said`: the decoded payload of an order's event), or unreadable.

    An event of another type than the story's two is read for its ids only. Without an outbox id it is from no outbox.
    """

    type: str | None = None  # None where the header is missing or unreadable
    outbox_id: int | None = None
    event_id: str | None = None
    said: Said | None = None
    unreadable: bool = False


def read(key: bytes | None, value: bytes | None, headers: Headers) -> Reading:
    """Read a record by the rules of the contract."""
    names = dict(headers)
    event_type = _text(names.get("event-type"))
    if event_type is None:
        return Reading(unreadable=True)
    outbox_id, event_id = _number(names.get("outbox-id")), names.get("event-id")
    well_formed = outbox_id is not None and (event_id is None or bool(_EVENT_ID.fullmatch(event_id)))
    known_id = event_id.decode().lower() if well_formed and event_id is not None else None
    if event_type not in _MESSAGES:
        return Reading(event_type, outbox_id, known_id) if well_formed else Reading(event_type)
    name = _text(key or names.get("aggregate-id"))
    if (
        not well_formed
        or not name
        or "\0" in name
        or names.get("content-type") != _CONTENT_TYPE
        or ("aggregate-seq" in names and _number(names["aggregate-seq"]) is None)
        or (said := parse(event_type, value or b"")) is None
    ):
        return Reading(event_type, unreadable=True)
    return Reading(event_type, outbox_id, known_id, said)


def parse(event_type: str, payload: bytes) -> Said | None:
    """Parse the payload of one of the story's event types; None where it names no order."""
    try:
        said = _MESSAGES[event_type].FromString(payload)
    except DecodeError:
        return None
    return said if _ORDER_ID.fullmatch(said.order_id) else None


def order_of(aggregate_id: str) -> str | None:
    """Return the order id in an aggregate's name, written as PostgreSQL writes it; None where there is none."""
    match = _AGGREGATE.fullmatch(aggregate_id)
    return match[1].lower() if match else None


def headers_differ(record: Record, row: Row, tenant: str | None) -> str:
    """Say how a record's headers differ from the contract's; "" where they don't.

    `tenant`: the order's tenant; None where the order does not exist, then the row's tenant is expected.
    """
    said = parse(row.type, row.payload) if row.type in _MESSAGES else None
    trace_id = said.trace_id if said else row.trace_id or ""
    if tenant is None:
        tenant = row.tenant_id if row.tenant_id is not None else said.tenant_id if said else ""
    expected = {
        "outbox-id": str(row.outbox_id),
        "aggregate-id": row.aggregate_id,
        "trace-id": trace_id,
        "tenant-id": tenant,
        "event-type": row.type,
        "content-type": row.content_type or "application/x-protobuf",
    }
    further = {
        name: str(value)
        for name, value in zip(FURTHER, (row.event_id, row.seq, row.traceparent), strict=True)
        if value is not None
    }
    names = tuple(name for name, _ in record.headers)
    if names not in {HEADERS, (*HEADERS, *further)}:
        return f"its headers are {shown(', '.join(names))}"
    expected |= further
    node = dict(record.headers)["publisher-node"]
    if not _NODE.fullmatch(node):
        return f"publisher-node is {shown(node)}, no node's name" if node else "publisher-node is empty"
    if row.publisher_node is not None and (row.partition, row.offset) == (record.partition, record.offset):
        expected["publisher-node"] = row.publisher_node
    for name, value in record.headers:
        if name in expected and value != expected[name].encode("utf-8"):
            return f"{name} is {shown(value)}, not {shown(expected[name])}"
    # A row with an event id must have more than seven headers, unless a publisher of the previous version sent it.
    if names == HEADERS and further and not is_of_the_version_before(record, row):
        return f"its headers are {shown(', '.join(names))}"
    if said and not _TRACE_ID.fullmatch(trace_id):
        return f"trace-id is {shown(trace_id)}, no W3C trace id" if trace_id else "trace-id is empty"
    return ""


def is_of_the_version_before(record: Record, row: Row) -> bool:
    """Say whether a record has only the seven headers although its row has an event id.

    During an upgrade a publisher of the previous version publishes rows of this version too. It knows order.created
    alone.
    """
    names = tuple(name for name, _ in record.headers)
    return names == HEADERS and row.event_id is not None and row.type == CREATED


def shown(value: bytes | str | None) -> str:
    """Shorten text of unknown origin for an output line."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _text(raw: bytes | None) -> str | None:
    try:
        return None if raw is None else raw.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _number(raw: bytes | None) -> int | None:
    return int(raw) if raw and _NUMBER.fullmatch(raw) and int(raw) <= _BIGINT else None
