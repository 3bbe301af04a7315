"""The contract of a record, written out once more for `verify`: it agrees with the program, and knows what is none."""

import uuid
from dataclasses import replace

import pytest

from brewctl.delivery import events
from brewctl.delivery.broker import Record
from brewctl.proto.orders_pb2 import OrderCancelled, OrderCreated
from brewctl.verify import contract
from brewctl.verify.contract import Reading, Row

ORDER_ID = "01a219ea-d59f-712c-af54-90bcdb05a46e"
ORDER = OrderCreated(order_id=ORDER_ID, tenant_id="tea", trace_id="0af7651916cd43dd8448eb211c80319c")
KEY = f"order-{ORDER_ID}"
EVENT_ID = "5d0c7b1e-9a68-4b7e-8d6f-0c5f1f7f2a10"
PARENT = f"00-{ORDER.trace_id}-00f067aa0ba902b7-01"
HEADERS = events.headers_for(
    7,
    KEY,
    "order.created",
    node="order-1",
    tenant_id="tea",
    trace_id=ORDER.trace_id,
    event_id=EVENT_ID,
    seq=1,
    traceparent=PARENT,
)
ROW = Row(
    7,
    KEY,
    "topic",
    ORDER.SerializeToString(),
    "order-1",
    3,
    40,
    event_type="order.created",
    event_id=EVENT_ID,
    seq=1,
    tenant_id="tea",
    trace_id=ORDER.trace_id,
    traceparent=PARENT,
)
RECORD = Record("topic", KEY.encode(), ROW.payload, HEADERS, 3, 40)
CREATED = {b"order.created": events.parse_order}


def changed(**new: bytes | None) -> list[tuple[str, bytes]]:
    said = {name.replace("_", "-"): value for name, value in new.items()}
    pairs = [(name, said.get(name, value)) for name, value in HEADERS]
    return [(name, value) for name, value in pairs if value is not None]


def test_what_the_publisher_sends_is_the_contract() -> None:
    assert contract.headers_differ(RECORD, ROW, "tea") == ""
    assert contract.read(RECORD.key, RECORD.value, RECORD.headers) == Reading("order.created", 7, EVENT_ID, ORDER)
    untraced = replace(ROW, traceparent=None)
    assert contract.headers_differ(RECORD._replace(headers=HEADERS[:9]), untraced, "tea") == ""


def test_a_row_of_the_version_before_has_seven_headers_from_its_payload() -> None:
    old = Row(7, KEY, "topic", ROW.payload, "order-1", 3, 40)
    assert contract.headers_differ(RECORD._replace(headers=HEADERS[:7]), old, "tea") == ""
    assert contract.headers_differ(RECORD, old, "tea").startswith("its headers are outbox-id, ")
    wrong = RECORD._replace(headers=changed(trace_id=b"0" * 32)[:7])
    assert contract.headers_differ(wrong, old, "tea").startswith("trace-id is 000")


def test_a_publisher_of_the_version_before_sends_seven_headers_of_any_order_and_is_told_by_that() -> None:
    seven = RECORD._replace(headers=HEADERS[:7])
    assert contract.headers_differ(seven, ROW, "tea") == ""
    assert contract.is_of_the_version_before(seven, ROW)
    assert not contract.is_of_the_version_before(RECORD, ROW)
    assert not contract.is_of_the_version_before(seven, replace(ROW, event_id=None)), "its row has no more to say"
    assert not contract.is_of_the_version_before(RECORD._replace(headers=HEADERS[:8]), ROW)


def test_a_cancelled_order_has_its_own_type() -> None:
    said = OrderCancelled(order_id=ORDER_ID, reason="late", tenant_id="tea", trace_id=ORDER.trace_id)
    row = replace(ROW, payload=said.SerializeToString(), event_type="order.cancelled", seq=2)
    headers = changed(event_type=b"order.cancelled", aggregate_seq=b"2")
    record = RECORD._replace(value=row.payload, headers=headers)
    assert contract.headers_differ(record, row, "tea") == ""
    assert contract.read(record.key, record.value, headers) == Reading("order.cancelled", 7, EVENT_ID, said)
    # A publisher of the version before takes it for an order.created.
    old = record._replace(headers=changed(aggregate_seq=b"2")[:7])
    assert contract.headers_differ(old, row, "tea") == "event-type is order.created, not order.cancelled"
    # Nor does it know the type.
    seven = contract.headers_differ(record._replace(headers=headers[:7]), row, "tea")
    assert seven.startswith("its headers are outbox-id, ")


def test_an_event_of_another_service_is_compared_with_its_row_alone() -> None:
    row = replace(
        ROW,
        payload=b"{}",
        event_type="stock.counted",
        trace_id="any",
        content_type="application/json",
        aggregate_id="s",
    )
    headers = changed(aggregate_id=b"s", event_type=b"stock.counted", trace_id=b"any", content_type=b"application/json")
    record = RECORD._replace(key=b"s", value=b"{}", headers=headers)
    assert contract.headers_differ(record, row, None) == ""
    assert contract.headers_differ(record._replace(headers=HEADERS), row, None) == f"aggregate-id is {KEY}, not s"
    assert contract.read(b"s", b"{}", headers) == Reading("stock.counted", 7, EVENT_ID)


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        (HEADERS[::-1], "its headers are traceparent, aggregate-seq, event-id, content-type"),
        (HEADERS[:-1], "its headers are outbox-id, "),
        (HEADERS[:6], "its headers are outbox-id, "),
        (changed(event_id=None), "its headers are outbox-id, "),
        (changed(event_id=b"0" * 36), "event-id is 0000"),
        (changed(aggregate_seq=b"2"), "aggregate-seq is 2, not 1"),
        (changed(traceparent=b"00"), "traceparent is 00, not 00-"),
        (changed(outbox_id=b"07"), "outbox-id is 07, not 7"),
        (changed(aggregate_id=ORDER_ID.encode()), f"aggregate-id is {ORDER_ID}, not {KEY}"),
        (changed(publisher_node=b"order-2"), "publisher-node is order-2, not order-1"),
        (changed(publisher_node=b"an order"), "publisher-node is an order, no node's name"),
        (changed(trace_id=b"0" * 32), f"trace-id is {'0' * 32}, not {ORDER.trace_id}"),
        (changed(tenant_id=b"coffee"), "tenant-id is coffee, not tea"),
        (changed(event_type=b"order.paid"), "event-type is order.paid, not order.created"),
        (changed(content_type=b"text/plain"), "content-type is text/plain, not application/x-protobuf"),
    ],
)
def test_what_is_not_the_contract_is_named(headers: list[tuple[str, bytes]], says: str) -> None:
    assert contract.headers_differ(RECORD._replace(headers=headers), ROW, "tea").startswith(says)


def test_a_copy_elsewhere_may_be_another_nodes() -> None:
    copy = RECORD._replace(offset=41, headers=changed(publisher_node=b"order-2"))
    assert contract.headers_differ(copy, ROW, "tea") == ""


def test_the_tenant_is_the_orders_own_not_the_rows() -> None:
    assert contract.headers_differ(RECORD, ROW, "coffee") == "tenant-id is tea, not coffee"
    assert contract.headers_differ(RECORD, ROW, None) == ""


def test_the_trace_is_the_payloads_not_the_rows() -> None:
    row = replace(ROW, trace_id="1" * 32)
    record = RECORD._replace(headers=changed(trace_id=b"1" * 32))
    assert contract.headers_differ(record, row, "tea") == f"trace-id is {'1' * 32}, not {ORDER.trace_id}"


@pytest.mark.parametrize(
    ("key", "value", "headers"),
    [
        (b"key", ROW.payload, []),
        (b"key", ROW.payload, changed(event_type=b"\xff")),
        (b"key", ROW.payload, changed(content_type=None)),
        (b"key", ROW.payload, changed(content_type=b"text/plain")),
        (b"key", ROW.payload, changed(outbox_id=None)),
        (b"key", ROW.payload, changed(outbox_id=b"0")),
        (b"key", ROW.payload, changed(outbox_id=b"-1")),
        (b"key", ROW.payload, changed(outbox_id="\u0667".encode())),
        (b"key", ROW.payload, changed(outbox_id=b"9223372036854775808")),
        (b"key", ROW.payload, changed(event_id=b"")),
        (b"key", ROW.payload, changed(event_id=b"5d0c7b1e")),
        (b"key", ROW.payload, changed(event_id=b"\xff" * 36)),
        (b"key", ROW.payload, changed(aggregate_seq=b"0")),
        (b"key", ROW.payload, changed(aggregate_seq=b"")),
        (None, ROW.payload, changed(aggregate_id=None)),
        (b"", ROW.payload, changed(aggregate_id=b"")),
        (b"\xff", ROW.payload, HEADERS),
        (b"\0", ROW.payload, HEADERS),
        (b"key", None, HEADERS),
        (b"key", b"", HEADERS),
        (b"key", b"\xff rubbish", HEADERS),
        (b"key", OrderCreated(order_id="no uuid").SerializeToString(), HEADERS),
    ],
)
def test_what_is_unreadable_is_so_to_the_consumers_too(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]
) -> None:
    assert contract.read(key, value, headers).unreadable
    with pytest.raises(events.UnreadableError):
        events.read(key, value, headers, decoders=CREATED)


@pytest.mark.parametrize("headers", [HEADERS, HEADERS[:7], HEADERS[:8], changed(event_id=EVENT_ID.upper().encode())])
@pytest.mark.parametrize("key", [KEY.encode(), b"", None])
def test_what_is_readable_is_the_same_event_to_the_consumers(
    key: bytes | None, headers: list[tuple[str, bytes]]
) -> None:
    reading, event = contract.read(key, ROW.payload, headers), events.read(key, ROW.payload, headers, decoders=CREATED)
    assert event is not None
    assert (reading.type, reading.outbox_id, reading.event_id) == (event.type, event.outbox_id, event.id)
    assert reading.said == event.data


@pytest.mark.parametrize(
    "headers",
    [
        [("event-type", b"stock.counted")],
        [("event-type", b"stock.counted"), ("outbox-id", b"x")],
        [("event-type", b"stock.counted"), ("outbox-id", b"7"), ("event-id", b"x")],
    ],
)
def test_another_type_is_nobodys_fault(headers: list[tuple[str, bytes]]) -> None:
    assert contract.read(None, b"whatever", headers) == Reading("stock.counted")
    assert events.read(None, b"whatever", headers, decoders=CREATED) is None


@pytest.mark.parametrize(
    ("aggregate", "order_id"),
    [(KEY, ORDER_ID), (KEY.upper().replace("ORDER", "order"), ORDER_ID), (ORDER_ID, None), ("order-1", None)],
)
def test_the_order_of_an_aggregate(aggregate: str, order_id: str | None) -> None:
    assert contract.order_of(aggregate) == order_id
    assert order_id is None or uuid.UUID(order_id)
